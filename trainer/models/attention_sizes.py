"""Heads of a model's attention, also of models whose layers have several kinds."""

from collections.abc import Iterator
from typing import Any


def head_size(text: Any) -> int:
    """Numbers of a head's query; the most, where layers differ (Gemma 4).

    Args:
        text: The configuration of the text model; of transformers.
    """
    found = [size for size in _of_layers(text, "head_dim") if size]
    return max(found, default=0) or text.hidden_size // text.num_attention_heads


def key_heads(text: Any) -> int:
    """Heads of keys and values; the most, where layers differ."""
    found = [heads for heads in _of_layers(text, "num_key_value_heads") if heads]
    return max(found, default=0) or text.num_attention_heads


def _of_layers(text: Any, name: str) -> Iterator[int | None]:
    """An attribute of every layer: a config whose layers differ answers for no layer at once."""
    # Remote code's configs, and those of older versions, as vLLM pins, are of one kind of layer.
    layers = getattr(text, "per_layer_config", None) if getattr(text, "is_heterogeneous", 0) else ()
    for layer in layers or (text,):
        yield getattr(layer, name, None)
