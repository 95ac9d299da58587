"""What LoRA trains of a model, and what that means for its memory: plain arithmetic."""

from collections.abc import Mapping
from typing import Any

from trainer.planning.model_shape import ModelShape

HEADS = ("lm_head", "embed_out", "output", "head")  # names of output layers


def setting_of(lora: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a setting says of the topic `lora`."""
    if lora is None:
        return {}
    whole = [name.rpartition(".")[2] for name in lora.get("modules_to_save", ())]
    return {
        "trains_head": any(name in HEADS for name in whole),
        "dora": bool(lora.get("dora")),
        "base_bits": lora.get("base_bits", 16),
    }


def adapter_parameters(shape: ModelShape, lora: Mapping[str, Any]) -> int:
    """Numbers that LoRA trains: two thin matrices beside each matrix that gets one, and more.

    Without `target_modules` peft adapts queries and values, or the matrix that makes them. DoRA
    adds the length of each row. A module that is trained whole is taken for an embedding.

    Args:
        lora: The topic's keys and values; those that it lacks are at their defaults.
    """
    if shape.counted_adapters:
        return shape.counted_adapters
    sides, names = _sides(shape), lora.get("target_modules") or ("q_proj", "v_proj")
    if names in ("all-linear", ["all-linear"]):
        feed_forward = ("gate_proj", "up_proj", "down_proj") if shape.gated else ("fc_in", "fc_out")
        names = ("q_proj", "k_proj", "v_proj", "o_proj", *feed_forward)
    adapted = [sides.get(n.rpartition(".")[2], sides["fc_in"]) for n in names]
    each = sum(lora.get("rank", 8) * (ins + outs) for ins, outs in adapted)
    each += sum(outs for _, outs in adapted) if lora.get("dora") else 0
    return shape.layers * each + len(lora.get("modules_to_save", ())) * shape.embedding_parameters


def _sides(shape: ModelShape) -> dict[str, tuple[int, int]]:
    """Columns and rows of a layer's matrices, by the names that architectures give them."""
    queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    width, inner = shape.width, shape.inner
    return {
        **dict.fromkeys(("query_key_value", "c_attn", "qkv_proj"), (width, queries + 2 * keys)),
        "q_proj": (width, queries),
        **dict.fromkeys(("o_proj", "out_proj", "dense"), (queries, width)),
        **dict.fromkeys(("k_proj", "v_proj"), (width, keys)),
        **dict.fromkeys(("fc_in", "c_fc", "dense_h_to_4h", "up_proj", "gate_proj"), (width, inner)),
        **dict.fromkeys(("fc_out", "dense_4h_to_h", "down_proj"), (inner, width)),
    }
