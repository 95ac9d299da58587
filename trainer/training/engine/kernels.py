"""How the operations of a model are carried out: what `kernels` asks for, and what torch chose."""

import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from trainer.contract.errors import RequestError
from trainer.contract.events import say
from trainer.models.attention_sizes import head_size


def keep_order_of_sums(keep: bool) -> None:
    """Have a GPU add up in one order each time, where torch has a kernel that does; else it warns.

    Source: https://docs.pytorch.org/docs/stable/notes/randomness.html
    """
    if keep:  # read when cuBLAS is first used
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(keep, warn_only=True)
    # All is written before it is read. Set by name: the module has no such attribute for mypy.
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010
    torch.backends.cudnn.benchmark = False


def attention_backend(
    model: Any, batch: int, context: int, device: torch.device, *, masked: bool = False
) -> str:
    """Which of torch's kernels attention over whole contexts is given to: for the record.

    Where the model does not ask torch for it, the name of what it asks.

    Args:
        masked: Whether contexts hold several texts, which a mask keeps apart.
    """
    config = model.config.get_text_config()
    asked = getattr(config, "_attn_implementation", None) or "its own"
    if asked != "sdpa" or not isinstance(getattr(config, "num_attention_heads", None), int):
        return str(asked)
    options: Any = {"dtype": next(model.parameters()).dtype, "device": device}
    heads, size = config.num_attention_heads, head_size(config)
    # Memory for one row of one head: training has taken the rest. The choice goes by shapes.
    given = torch.empty((1, 1, context, size), **options).expand(batch, heads, -1, -1)
    mask = torch.ones((1, 1, 1, context), dtype=torch.bool, device=device)  # (B, 1, T, T) of it
    choice = torch._fused_sdp_choice(
        given,
        given,
        given,
        attn_mask=mask.expand(batch, 1, context, context) if masked else None,
        is_causal=not masked,
    )
    return f"sdpa: {SDPBackend(choice).name.lower()}"


def compile_layers(layers: Iterable[Any], fullgraph: bool) -> None:
    """Have torch.compile write each layer's code, for micro-batches of one shape.

    Each shape has code of its own, whose sums may be in another order: a run that continues would
    meet the shapes in another order if there were several.
    """
    for layer in layers:
        layer.compile(dynamic=False, fullgraph=fullgraph)


def full_graphs_or_less(forward: Callable[[], Tensor], layers: Iterable[Any]) -> Tensor:
    """The first forward pass, in which layers are compiled: each whole, or else in pieces."""
    from torch._dynamo.exc import Unsupported

    try:
        return forward()
    except Unsupported as error:
        reason = str(error).strip().splitlines()[0]
        say(f"kernels.compile: a layer is not one graph ({reason}), so it is compiled in pieces")
    compile_layers(layers, fullgraph=False)
    return forward()


def take_liger(model: Any) -> None:
    """Norms, rotations and activations of Liger's; the loss in chunks stays ours."""
    from liger_kernel.transformers import _apply_liger_kernel_to_instance
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    kind = model.config.model_type
    if kind not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise RequestError(
            f"kernels.liger has no kernels for this model (got model_type {kind!r}). "
            "Leave it out, or try kernels.compile."
        )
    _apply_liger_kernel_to_instance(model, cross_entropy=False, fused_linear_cross_entropy=False)
