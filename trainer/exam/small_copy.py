"""Make a small copy of an architecture: few and narrow layers, every feature of its config.

Sizes of heads, ranks, scalings and kinds of layers stay; counts get small. Windows get shorter
than the texts of the exam, so that they matter. Random numbers go into the buffers, too: a copy
whose router has corrections of zero would not show that they are lost.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from trainer.models.buffers import persistent_buffers
from trainer.models.loading import attention_for

VOCABULARY = 128
MOST_LAYERS, WINDOW, CHUNK = 8, 8, 16
LEAST_POSITIONS, MOST_POSITIONS = 256, 4096
EXPERTS, RANK = 8, 32
MOST_PARAMETERS = 100_000_000

_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads")
_KEY_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv")
_OTHER_HEADS = ("decoder_attention_heads", "encoder_attention_heads")
_WIDTH = ("hidden_size", "n_embd", "d_model", "dim")
_EXPERTS = (
    "num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts", "num_moe_experts",
)  # fmt: skip
_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk", "moe_top_k")
_WINDOWS = (
    "sliding_window", "window_size", "attention_chunk_size", "local_attention",
    "attention_window_size",
)  # fmt: skip
_POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
_VOCABULARIES = (
    "vocab_size", "vocab_size_per_layer_input", "n_words", "encoder_hash_byte_group_vocab",
)  # fmt: skip
_RANKS = (
    "q_lora_rank",
    "kv_lora_rank",
    "laurel_rank",
    "adapter_rank",
    "time_step_rank",
    "index_topk",
)
_TO_ONE = ("first_k_dense_replace", "moe_layer_start_index", "num_dense_layers", "n_dense_layers")


def small_config(config: Any, heads: int = 2) -> Any:
    """The configuration of a small copy.

    Args:
        config: Of transformers; stays as it is.
        heads: Of keys and values, at most.
    """
    values = _small(config.to_dict(), config, heads)
    made = type(config).from_dict(values)
    made._attn_implementation = None
    return made


def _small(values: dict[str, Any], config: Any, heads: int) -> dict[str, Any]:
    """The values of a config class's dict for a small copy, and of its nested configs."""
    values = copy.deepcopy(values)
    for name, part in list(values.items()):
        if isinstance(part, dict) and name.endswith("_config") and hasattr(config, name):
            inner = getattr(config, name)
            if hasattr(inner, "to_dict") and name not in ("quantization_config",):
                values[name] = _small(inner.to_dict(), inner, heads)
    values.pop("quantization_config", None)
    for name, value in values.items():
        if "drop" in name and isinstance(value, float):
            values[name] = 0.0  # it draws anew in each pass, which no comparison survives
    _shorten(values, config)
    _narrow(values, heads)
    for name in _VOCABULARIES:
        if isinstance(values.get(name), int):
            values[name] = min(values[name], VOCABULARY)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id", "cls_token_id", "sep_token_id"):
        values[name] = _inside(values.get(name), VOCABULARY)
    for name in [n for n in _WINDOWS if isinstance(values.get(n), int)]:
        values[name] = min(values[name], WINDOW)
    for name in [n for n in _POSITIONS if isinstance(values.get(n), int)]:
        values[name] = max(LEAST_POSITIONS, min(values[name], MOST_POSITIONS))
    for name in ("chunk_size", "mamba_chunk_size", "block_size"):
        if isinstance(values.get(name), int):
            values[name] = min(values[name], CHUNK)
    return values


def _shorten(values: dict[str, Any], config: Any) -> None:
    """Take the first layers, as many as show every kind of layer."""
    name = next((n for n in _LAYERS if isinstance(values.get(n), int)), None)
    if name is None:
        return
    layers = values[name]
    for key in _TO_ONE:
        if isinstance(values.get(key), int):
            values[key] = min(values[key], 1)
    listed = {
        key: list(found)
        for key in values
        if isinstance(found := _of(config, key, values[key]), list | tuple)
        and len(found) == layers > 0
    }
    kinds = max(2, _prefix(listed.values(), layers))
    shared = bool(values.get("num_kv_shared_layers"))
    count = min(layers, kinds * (2 if shared else 1))
    values[name] = count
    if isinstance(own := values.get("per_layer_config"), dict):
        values["per_layer_config"] = {k: v for k, v in own.items() if int(k) < count}
    for key, found in listed.items():
        values[key] = found[:count]
    for key in ("max_window_layers", "num_kv_shared_layers"):
        if isinstance(values.get(key), int):
            values[key] = min(values[key], count // 2)
    if "attention_types" in values:  # GPT-Neo's
        values["attention_types"] = [[kinds, 1] for kinds, _ in values["attention_types"][:1]]
        values[name] = len(values["attention_types"][0][0])
        values.pop("attention_layers", None)


def _of(config: Any, key: str, otherwise: Any) -> Any:
    """What the config class makes of a key; some refuse to answer for all layers at once."""
    try:
        return getattr(config, key, otherwise)
    except Exception:  # noqa: BLE001  each class raises its own
        return otherwise


def _prefix(lists: Any, layers: int) -> int:
    """The shortest beginning of all lists with every combination that stands in them."""
    rows = [tuple(str(entry) for entry in row) for row in zip(*lists, strict=True)]
    if not rows:
        return 2
    first = {row: index for index, row in reversed(list(enumerate(rows)))}
    return min(MOST_LAYERS, 1 + max(first.values()), layers)


def _narrow(values: dict[str, Any], most: int) -> None:
    """Take few heads of the same size, and widths in proportion."""
    width_name = next((n for n in _WIDTH if isinstance(values.get(n), int)), None)
    if width_name is None:
        return
    width = values[width_name]
    heads_name = next((n for n in _HEADS if isinstance(values.get(n), int)), None)
    heads = values[heads_name] if heads_name else max(1, width // 64)
    head_size = values.get("head_dim") or max(1, width // heads)
    if isinstance(head_size, int) and head_size > 128:
        most = max(1, most // 2)  # seconds, not minutes, for Gemma's heads of 256
    few = _few_heads(values, heads, most)
    narrow = _small_width(width, heads, head_size if isinstance(head_size, int) else 64, few)
    share = narrow / width
    for name in (*_OTHER_HEADS, *([heads_name] if heads_name else [])):
        if name in values:
            values[name] = few
    for key, value in list(values.items()):
        if key in _EXPERTS and isinstance(value, int):
            values[key] = min(value, EXPERTS)
        elif key in _PER_TOKEN and isinstance(value, int):
            values[key] = min(value, 2)
        elif key in _RANKS and isinstance(value, int):
            values[key] = min(value, RANK)
        elif key in _HEADS or key in _KEY_HEADS:
            continue
        elif value in (width, 2 * width) and _is_width(key) and not isinstance(value, bool):
            values[key] = narrow * (value // width)
        elif _is_inner(key) and not isinstance(value, bool):
            values[key] = _scaled(value, share, narrow // 2)
    for key, most in (
        ("n_group", 2),
        ("num_expert_group", 2),
        ("topk_group", 1),
        ("n_shared_experts", 1),
    ):
        if isinstance(values.get(key), int):
            values[key] = min(values[key], most)
    _fit_recurrent(values, narrow)


def _few_heads(values: dict[str, Any], heads: int, most: int) -> int:
    """Set the heads of keys; how many heads there are then: as many, or groups of two."""
    for name in _KEY_HEADS:
        keys = values.get(name)
        if isinstance(keys, int) and keys > 0:
            few_keys = min(keys, most)
            values[name] = few_keys
            return few_keys * min(2, max(1, heads // keys))
    return min(heads, max(2, most))


def _small_width(width: int, heads: int, head_size: int, few: int) -> int:
    together = few * head_size
    if width == heads * head_size:
        return together
    return max(64, together // 2 if width < heads * head_size else together + 64)


def _is_width(key: str) -> bool:
    return any(word in key for word in ("size", "dim", "width", "embd", "d_model", "d_inner"))


def _is_inner(key: str) -> bool:
    names = ("intermediate_size", "ffn", "n_inner", "intermediate_size_mlp")
    return any(name in key for name in names) and "config" not in key and "multiple" not in key


def _scaled(value: Any, share: float, most: int) -> Any:
    """An inner width, or those of all layers, in proportion and at most `most`."""
    if isinstance(value, list):
        return [_scaled(entry, share, most) for entry in value]
    if not isinstance(value, int) or value < 64:
        return value
    return max(32, min(int(value * share), most) // 16 * 16)


def _fit_recurrent(values: dict[str, Any], width: int) -> None:
    """Give recurrent layers as many heads as their inner width holds."""
    expand = values.get("mamba_expand") or values.get("expand")
    size = next(
        (
            values[n]
            for n in ("mamba_d_head", "mamba_head_dim", "mamba_headdim")
            if isinstance(values.get(n), int)
        ),
        None,
    )
    for name in ("mamba_n_heads", "mamba_num_heads", "n_mamba_heads"):
        if isinstance(values.get(name), int) and size and expand:
            values[name] = max(1, int(expand * width) // size)
    if values.get("model_type") == "mamba2":
        values["num_heads"] = int((expand or 2) * width) // values["head_dim"]
    for name in ("n_groups", "mamba_n_groups", "mamba_ngroups"):
        if isinstance(values.get(name), int):
            values[name] = min(values[name], 2)
    if values.get("model_type") == "zamba2":
        values["attention_head_dim"] = 2 * width // values["num_attention_heads"]
    if isinstance(values.get("linear_num_key_heads"), int):
        ratio = max(1, values["linear_num_value_heads"] // values["linear_num_key_heads"])
        values["linear_num_key_heads"] = 2
        values["linear_num_value_heads"] = 2 * min(2, ratio)


def _inside(value: Any, size: int) -> Any:
    """A token id, or ids, below `size`."""
    if isinstance(value, list):
        return [_inside(entry, size) for entry in value][:1] or None
    return value if not isinstance(value, int) or value < size else size - 1


def small_model(config: Any, seed: int = 0, trust_remote_code: bool = False) -> Any:
    """A model of a small config with random numbers, in fp32, in evaluation mode.

    Raises:
        ValueError: It is not small.
    """
    from transformers import AutoModelForCausalLM

    attention = attention_for(config, trust_remote_code)

    def build() -> Any:
        return AutoModelForCausalLM.from_config(
            copy.deepcopy(config),
            dtype=torch.float32,
            attn_implementation=attention,
            trust_remote_code=trust_remote_code,
        )

    with torch.device("meta"):
        size = sum(p.numel() for p in build().parameters())
    if size > MOST_PARAMETERS:
        raise ValueError(f"the small copy has {size:,} parameters")
    torch.manual_seed(seed)
    model = build()
    _randomize(model, torch.Generator().manual_seed(seed))
    return model.eval()


@torch.no_grad()
def _randomize(model: Any, generator: torch.Generator) -> None:
    """Numbers as trained models have them: no part is zero, or without effect."""
    for name, parameter in model.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() >= 2 and "A_log" not in name and "norm" not in name.lower():
            fan_in = parameter.shape[-1]
            parameter.copy_(drawn * (0.3 if "embed" in name or "wte" in name else fan_in**-0.5))
        elif name.endswith(("bias", "sinks")) and "dt" not in name:
            parameter.add_(drawn * 0.05)
    for buffer in _buffers(model):
        if _is_constant(buffer):
            _add_noise(buffer, 0.2, generator)


@contextmanager
def every_buffer_random(model: Any, seed: int = 1) -> Iterator[None]:
    """The model with random numbers in all its buffers, so that one that gets lost is seen.

    Numbers that differ are computed from the config and have to fit together (MiniMax's decays are
    its causal mask): such a model can be trained and compared with itself, and says nothing else.
    """
    others = [buffer for buffer in _buffers(model) if not _is_constant(buffer)]
    kept = [buffer.clone() for buffer in others]
    generator = torch.Generator().manual_seed(seed)
    for buffer in others:
        _add_noise(buffer, buffer.float().std(unbiased=False).item(), generator)
    try:
        yield
    finally:
        for buffer, before in zip(others, kept, strict=True):
            buffer.copy_(before)


def _buffers(model: Any) -> list[Tensor]:
    found = persistent_buffers(model).values()
    return [buffer for buffer in found if buffer.is_floating_point() and buffer.numel()]


def _is_constant(buffer: Tensor) -> bool:
    return bool((buffer == buffer.flatten()[0]).all())


def _add_noise(buffer: Tensor, spread: float, generator: torch.Generator) -> None:
    buffer.add_((torch.randn(buffer.shape, generator=generator) * spread).to(buffer.dtype))
