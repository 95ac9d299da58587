"""What a model's config.json says of its size: plain arithmetic, standard library only.

Reads the names that GPT-2, GPT-Neo, GPT-J, GPT-NeoX, OPT, Bloom, Llama and their kin
use; imports neither torch nor transformers, so that a plan needs neither.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_WIDTH = ("hidden_size", "n_embd", "d_model")
_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads")
_INNER = ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")
_KEY_HEADS = ("num_key_value_heads", "num_kv_heads")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_PER_TOKEN = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "experts_per_token",
    "moe_k",
    "moe_topk",
)
_POSITIONS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
MOST_LAYERS, MOST_SIZE = 10_000, 1 << 31
"""Of a model: beyond these a config.json is wrong, and building its model would not end."""
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
    """Width of the feed-forward part; of a mixture, of what works on a token, on average."""
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
    idle_parameters: int = 0
    """Weights of a mixture's experts that do not work on a token."""
    attention_parameters: int = 0
    """Weights of a layer's attention where it is not made of four plain matrices; 0: it is."""
    expert_parameters: int = 0
    """Weights of all experts of a layer, which are one tensor or two; 0: no mixture."""
    counted: int = 0
    """All weights, counted in the architecture itself; 0: they are worked out here."""
    counted_adapters: int = 0
    """What the request's LoRA trains, counted likewise; 0: it is worked out, or there is none."""
    stored_bytes: int = 4
    """Of a weight in the model's files, and in those of the model that is made of it."""

    @property
    def layer_parameters(self) -> int:
        """Weights of one layer's matrices that work on a token.

        Norms and biases are left out (below 0.1 %).
        """
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        attention = self.attention_parameters or self.width * (2 * queries + 2 * keys)
        return attention + self.width * self.inner * (3 if self.gated else 2)

    @property
    def embedding_parameters(self) -> int:
        return self.vocabulary * self.width

    @property
    def parameters(self) -> int:
        """All weights: what memory and files hold."""
        if self.counted:
            return self.counted
        tables = self.embedding_parameters * (1 if self.tied else 2)
        tables += self.learned_positions * self.width
        return self.layers * self.layer_parameters + self.idle_parameters + tables

    @property
    def active_parameters(self) -> int:
        """The weights that work on a token: what time depends on."""
        return self.parameters - self.idle_parameters

    @property
    def largest_tensor(self) -> int:
        """Numbers in the largest weight, which is gathered or reduced as a whole."""
        # Gate and input of all experts are one tensor, two of their three matrices.
        experts = self.expert_parameters * 2 // 3
        return max(self.embedding_parameters, self.width * self.inner, experts)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "ModelShape":
        """The shape that a config.json describes.

        Raises:
            ValueError: It names no width, layers, heads or vocabulary.
        """
        part = text_part(config)
        if too_large := sizes_beyond_models(part):
            raise ValueError(too_large[0])
        kind = str(part.get("model_type", ""))
        width, layers = _needed(part, _WIDTH), _needed(part, _LAYERS)
        heads = _needed(part, _HEADS)
        positions = positions_of(config)
        activation = str(part.get("hidden_act") or part.get("activation_function") or "")
        learned = (_first(part, _POSITIONS) or 0) if kind in _LEARNED_POSITIONS else 0
        gated = activation in _GATED or kind.startswith("gemma")
        mixture = _mixture(part, layers, width, gated)
        return cls(
            layers=layers,
            width=width,
            heads=heads,
            kv_heads=_key_heads(part, kind, heads),
            head_size=_first(part, ("head_dim",)) or width // heads,
            inner=mixture["inner"] if mixture else _first(part, _INNER) or 4 * width,
            idle_parameters=mixture.get("idle_parameters", 0),
            expert_parameters=mixture.get("expert_parameters", 0),
            attention_parameters=_latent_attention(part, width, heads),
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


def _key_heads(part: Mapping[str, Any], kind: str, heads: int) -> int:
    """Heads of keys and values; Falcon and GPT-BigCode say multi_query where there is one."""
    multi_query = bool(part.get("multi_query", kind in ("falcon", "gpt_bigcode")))
    if kind == "falcon" and not part.get("new_decoder_architecture"):
        return 1 if multi_query else heads
    if kind == "gpt_bigcode":
        return 1 if multi_query else heads
    return _first(part, _KEY_HEADS) or heads


def _latent_attention(part: Mapping[str, Any], width: int, heads: int) -> int:
    """Weights of DeepSeek's attention, whose keys and values are low-rank; 0: another kind.

    Source: DeepSeek-V2 (arXiv 2405.04434), section 2.1.
    """
    rank = _first(part, ("kv_lora_rank",))
    if not rank:
        return 0
    rotary, plain = part.get("qk_rope_head_dim") or 0, part.get("qk_nope_head_dim") or 0
    value = part.get("v_head_dim") or plain
    queries = heads * (rotary + plain)
    low = _first(part, ("q_lora_rank",))
    into = low * (width + queries) if low else width * queries
    return into + width * (rank + rotary) + rank * heads * (plain + value) + heads * value * width


def _mixture(part: Mapping[str, Any], layers: int, width: int, gated: bool) -> dict[str, int]:
    """What a mixture of experts makes of the feed-forward part; empty: it is none."""
    nested = part.get("ffn_config")
    ffn: Mapping[str, Any] = nested if isinstance(nested, Mapping) else {}
    experts = _first(part, _EXPERTS) or _first(ffn, ("moe_num_experts",)) or 0
    used = _first(part, _PER_TOKEN) or _first(ffn, ("moe_top_k",)) or 0
    if experts < 2 or not used:
        return {}
    dense = _first(part, ("intermediate_size_mlp", *_INNER)) or 4 * width
    inner = _first(part, ("moe_intermediate_size", "expert_ffn_hidden_size", *_INNER))
    inner = inner or _first(ffn, ("ffn_hidden_size",)) or 4 * width
    shared = _first(part, ("shared_expert_intermediate_size", "shared_intermediate_size"))
    shared = shared or inner * (_first(part, ("n_shared_experts", "moe_num_shared_experts")) or 0)
    if part.get("model_type") in ("llama4", "llama4_text"):
        shared = inner
    sparse = _sparse_layers(part, layers)
    matrices = 3 if gated or ffn else 2
    expert = width * inner * matrices
    working = used * inner + shared
    return {
        "inner": (sparse * working + (layers - sparse) * dense) // layers,
        "idle_parameters": sparse * (experts - used) * expert,
        "expert_parameters": experts * expert,
    }


def _sparse_layers(part: Mapping[str, Any], layers: int) -> int:
    """How many layers have experts."""
    if isinstance(kinds := part.get("mlp_layer_types"), list):
        return sum(kind != "dense" for kind in kinds)
    if isinstance(listed := part.get("moe_layers"), list) and listed:
        return len(listed)
    period, offset = part.get("expert_layer_period"), part.get("expert_layer_offset", 0)
    if isinstance(period, int) and period > 0:
        return sum(layer % period == offset for layer in range(layers))
    first = _first(part, ("first_k_dense_replace", "moe_layer_start_index")) or 0
    step = _first(part, ("decoder_sparse_step", "interleave_moe_layer_step")) or 1
    only_dense = part.get("mlp_only_layers")
    dense = set(only_dense) if isinstance(only_dense, list) else set()
    if step > 1:
        return sum((n + 1) % step == 0 and n not in dense for n in range(layers))
    return sum(n >= first and n not in dense for n in range(layers))


def text_part(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part that describes the language model, where the model has others too."""
    part = config.get("text_config")
    return part if isinstance(part, Mapping) else config


def positions_of(config: Mapping[str, Any]) -> int | None:
    """Most tokens that the model of a config.json takes; None: it names no limit.

    Some configs name the positions before RoPE scaling, and others those after it. Scalings that
    keep the first number beside the second (`original_max_position_embeddings`) decide it.

    Source: vLLM's _get_and_verify_max_len, which reads them alike; Gemma 3 names those after it.
    """
    part = text_part(config)
    named = _first(part, _POSITIONS)
    if named is None:
        return None
    limits = [named]
    for scaling in _rope_scalings(part):
        kind, factor = scaling.get("rope_type") or scaling.get("type"), scaling.get("factor")
        if not isinstance(factor, int | float) or factor <= 1:
            continue
        original = scaling.get("original_max_position_embeddings")
        if isinstance(original, int) and original > 0:
            limits.append(int(original * factor))
        elif kind in ("linear", "dynamic") and "gemma3" not in str(part.get("model_type")):
            limits.append(int(named * factor))
    return max(limits)


def rotation_limit(config: Mapping[str, Any]) -> tuple[str, int] | None:
    """Kind of RoPE whose rotation depends on the longest text of a batch, and from which length on.

    None: it is the same for texts of any length. Source: transformers' dynamic_rope_update.
    """
    part = text_part(config)
    for scaling in _rope_scalings(part):
        kind = scaling.get("rope_type") or scaling.get("type")
        limit = scaling.get("original_max_position_embeddings") or _first(part, _POSITIONS)
        limit = part.get("original_max_position_embeddings") or limit
        if kind in ("dynamic", "longrope", "su") and isinstance(limit, int):
            return str(kind), limit
    return None


def sizes_beyond_models(part: Mapping[str, Any]) -> list[str]:
    """The sizes in a config.json that no model has, a sentence each."""
    sizes = (
        *_WIDTH,
        *_HEADS,
        *_INNER,
        *_KEY_HEADS,
        *_EXPERTS,
        *_PER_TOKEN,
        "vocab_size",
        "head_dim",
    )
    learned = str(part.get("model_type", "")) in _LEARNED_POSITIONS
    most = {
        **dict.fromkeys((*sizes, *(_POSITIONS if learned else ())), MOST_SIZE),
        **dict.fromkeys(_LAYERS, MOST_LAYERS),
    }
    found = {name: part.get(name) for name in most}
    return [
        f"config.json says {name} = {_shortened(str(value))}, and no model has more than "
        f"{most[name]:,}. Bring the config.json that belongs to the weights."
        for name, value in found.items()
        if isinstance(value, int | float) and abs(value) > most[name]
    ]


def _shortened(number: str) -> str:
    return number if len(number) < 30 else f"{number[:20]}... ({len(number):,} characters)"


def _rope_scalings(part: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What the config says of scaling, by its names of versions 4 and 5, also by kind of layer."""
    found = [part.get(name) for name in ("rope_parameters", "rope_scaling")]
    plain = [entry for entry in found if isinstance(entry, Mapping)]
    nested = [e for entry in plain for e in entry.values() if isinstance(e, Mapping)]
    return [*plain, *nested]


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
