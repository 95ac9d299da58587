"""Frozen weights in 4 bits beside trained adapters (QLoRA), by bitsandbytes.

NF4 in blocks of 64 whose scales are in 8 bits ("double quantization"). Weights are quantized on
the CPU, whatever trains, so that the final model can be put together from the same numbers: its
weights are those that training multiplied by, with the adapters worked in.

Source: Dettmers et al., "QLoRA: Efficient Finetuning of Quantized LLMs", arXiv 2305.14314.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from trainer.contract.errors import RequestError


class FourBitLinear(nn.Linear):
    """A linear layer whose weight is 4-bit codes; it takes no gradient."""

    packed: Tensor  # uint8, two codes in each

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        packed, self.state = _quantized(linear.weight.data)
        # No parameter: DeepSpeed would spread it, and a buffer of floats would be cast.
        self.register_buffer("packed", packed, persistent=False)
        self.bias = linear.bias

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """What the codes stand for, (out_features, in_features), made anew at each call."""
        return _dequantized(self.packed, self.state)

    def forward(self, input: Tensor) -> Tensor:
        from bitsandbytes.autograd._functions import MatMul4Bit

        self.state.to(input.device)
        # Its backward pass makes the weight from the codes again instead of keeping it.
        return MatMul4Bit.apply(input, self.packed.t(), None, self.bias, self.state)


def quantize(model: Any, left_out: Iterable[str] = ()) -> int:
    """Put a FourBitLinear for each linear layer but the head; how many weights that were.

    Args:
        left_out: Names of modules that are trained whole.
    Raises:
        RequestError: The model has no such layer.
    """
    weights = 0
    for parent, name, layer in _layers(model, tuple(left_out)):
        weights += layer.weight.numel()
        setattr(parent, name, FourBitLinear(layer))
    if not weights:
        raise RequestError(
            f"lora.base_bits=4 finds no linear layer in this model (got model_type "
            f"{model.config.model_type!r}). Leave it out, or take another model."
        )
    return weights


@torch.no_grad()
def round_to_four_bits(model: Any, dtype: torch.dtype, left_out: Iterable[str] = ()) -> None:
    """Give the same layers the weights that training multiplies by, in the type they are in.

    Args:
        dtype: Of the weights in training, before they are quantized.
    """
    for _, _, layer in _layers(model, tuple(left_out)):
        layer.weight.copy_(_dequantized(*_quantized(layer.weight.data.to(dtype))))


def _layers(model: Any, left_out: tuple[str, ...]) -> list[tuple[nn.Module, str, nn.Linear]]:
    """Each layer with the module that holds it, and its name there."""
    head = model.get_output_embeddings()
    found = []
    for path, parent in list(model.named_modules()):
        for name, layer in parent.named_children():
            whole = f"{path}.{name}"
            is_left_out = any(whole.endswith(f".{other}") for other in left_out)
            if type(layer) is nn.Linear and layer is not head and not is_left_out:
                found.append((parent, name, layer))
    return found


def _quantized(weight: Tensor) -> tuple[Tensor, Any]:
    from bitsandbytes import functional

    return functional.quantize_4bit(
        weight.cpu().contiguous(), blocksize=64, compress_statistics=True, quant_type="nf4"
    )


def _dequantized(packed: Tensor, state: Any) -> Tensor:
    from bitsandbytes import functional

    state.to(packed.device)
    return functional.dequantize_4bit(packed, state)
