"""What a model's config.json says of its size: plain arithmetic, standard library only.

Reads the names that GPT-2, GPT-Neo, GPT-J, GPT-NeoX, OPT, Bloom, Llama and their kin
use; imports neither torch nor transformers, so that a plan needs neither.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_WIDTH = ("hidden_size", "n_embd", "d_model")
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads")
_INNER = ("intermediate_size", "n_inner", "ffn_dim")
_POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
# Kinds whose weights for input and output are one tensor unless the config says otherwise.
_TIED = ("gpt2", "gpt_neo", "opt", "bloom", "falcon", "gemma", "gpt_bigcode")
# Kinds that look positions up in a table of weights instead of rotating or biasing.
_LEARNED_POSITIONS = ("gpt2", "gpt_neo", "opt", "gpt_bigcode")
_GATED = ("silu", "swish", "swiglu", "geglu")
# GELU that transformers writes out in steps, of which autograd keeps each; not for GPT-J, which
# trainer/models/gptj.py gives torch's.
_STEPWISE = ("gelu_new", "gelu_fast", "quick_gelu")
# Input, normed input and output of attention; two norms, or a norm in steps, keep more.
# Counted with torch.autograd.graph.saved_tensors_hooks, transformers 5.23.
_KEPT_STATES = {"gptj": 3}


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """A decoder's dimensions."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_size: int
    inner: int
    """Width of the feed-forward part."""
    gated: bool
    """Whether that part has a gate: three matrices instead of two."""
    kept_states: int = 7
    """Numbers of the model's width that a layer keeps for its backward pass for each token,
    beside queries, keys and values."""
    kept_inner: int = 2
    """Likewise of the inner width."""
    vocabulary: int
    tied: bool
    """Whether the output layer is the embedding."""
    positions: int | None
    """Most tokens in a context; None: no limit is named."""
    learned_positions: int
    """Rows of a table of positions, which is part of the weights."""
    stored_bytes: int = 4
    """Of a weight in the model's files, and in those of the model that is made of it."""

    @property
    def layer_parameters(self) -> int:
        """Weights of one layer's matrices; norms and biases are left out (below 0.1 %)."""
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        attention = self.width * (2 * queries + 2 * keys)
        return attention + self.width * self.inner * (3 if self.gated else 2)

    @property
    def embedding_parameters(self) -> int:
        return self.vocabulary * self.width

    @property
    def parameters(self) -> int:
        tables = self.embedding_parameters * (1 if self.tied else 2)
        return self.layers * self.layer_parameters + tables + self.learned_positions * self.width

    @property
    def largest_tensor(self) -> int:
        """Numbers in the largest weight, which is gathered or reduced as a whole."""
        return max(self.embedding_parameters, self.width * self.inner)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "ModelShape":
        """The shape that a config.json describes.

        Raises:
            ValueError: It names no width, layers, heads or vocabulary.
        """
        text = config.get("text_config")
        part: Mapping[str, Any] = text if isinstance(text, Mapping) else config
        kind = str(part.get("model_type", ""))
        width, layers = _needed(part, _WIDTH), _needed(part, _LAYERS)
        heads = _needed(part, _HEADS)
        positions = _first(part, _POSITIONS)
        activation = str(part.get("hidden_act") or part.get("activation_function") or "")
        learned = positions if positions and kind in _LEARNED_POSITIONS else 0
        gated = activation in _GATED or kind.startswith("gemma")
        return cls(
            layers=layers,
            width=width,
            heads=heads,
            kv_heads=_first(part, ("num_key_value_heads",)) or heads,
            head_size=_first(part, ("head_dim",)) or width // heads,
            inner=_first(part, _INNER) or 4 * width,
            gated=gated,
            kept_states=_KEPT_STATES.get(kind, 7),
            kept_inner=4 if gated else 5 if activation in _STEPWISE and kind != "gptj" else 2,
            vocabulary=_needed(part, ("vocab_size",)),
            tied=bool(part.get("tie_word_embeddings", kind.startswith(_TIED))),
            positions=positions,
            learned_positions=learned,
            # As trainer/models/loading.py: base_dtype.
            stored_bytes=_BYTES.get(str(config.get("dtype") or config.get("torch_dtype")), 4),
        )


def adapter_parameters(shape: ModelShape, rank: int, target_modules: Sequence[str]) -> int:
    """Numbers in LoRA's adapters: two thin matrices beside each matrix that gets one.

    Without `target_modules` peft adapts queries and values, or the matrix that makes them.
    """
    queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    inwards, outwards = shape.width + shape.inner, shape.inner + shape.width
    sides = {
        **dict.fromkeys(
            ("query_key_value", "c_attn", "qkv_proj"), shape.width + queries + 2 * keys
        ),
        **dict.fromkeys(("q_proj", "o_proj", "out_proj", "dense"), shape.width + queries),
        **dict.fromkeys(("k_proj", "v_proj"), shape.width + keys),
        **dict.fromkeys(("fc_in", "c_fc", "dense_h_to_4h", "up_proj", "gate_proj"), inwards),
        **dict.fromkeys(("fc_out", "dense_4h_to_h", "down_proj"), outwards),
    }
    names = target_modules or ("q_proj", "v_proj")
    return rank * shape.layers * sum(sides.get(n.rpartition(".")[2], inwards) for n in names)


def _first(config: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    values = (config.get(name) for name in names)
    return next((value for value in values if isinstance(value, int) and value > 0), None)


def _needed(config: Mapping[str, Any], names: tuple[str, ...]) -> int:
    value = _first(config, names)
    if value is None:
        raise ValueError(
            f"config.json does not say the model's {names[0]} (got keys {sorted(config)[:12]}). "
            f"It is named {' or '.join(names)}. Take the config.json of a causal language model."
        )
    return value
