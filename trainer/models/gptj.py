"""Scaled-dot-product attention and a fused GELU for GPT-J, which transformers 5.23 gives it not.

`install()` teaches transformers' own GPT-J classes the attention interface that
GPT-NeoX and Llama have: `sdpa` in training and generation, and whatever else is
registered there (such as `paged|sdpa` for continuous batching). Weights, names and
results stay those of transformers; `eager` keeps its own code. Its GELU, written out in eight
steps of which autograd keeps five tensors of (B, T, 4 D), is the same function of torch's.

Shapes: B batch, T tokens, H heads, K head size, R rotary size, D model width.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.activations import NewGELUActivation
from transformers.cache_utils import DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.gptj import modeling_gptj as gptj

_EAGER_MODEL_FORWARD = gptj.GPTJModel.forward
_MLP_INIT = gptj.GPTJMLP.__init__
_OWN_CODE = ("eager", "flash_attention_2")


class GPTJInterfaceAttention(gptj.GPTJAttention):
    """GPT-J's attention through `ALL_ATTENTION_FUNCTIONS`; parameters as in GPTJAttention."""

    num_key_value_groups = 1

    def __init__(self, config: Any, layer_idx: int | None = None) -> None:
        super().__init__(config, layer_idx)
        self.scaling = self.head_dim**-0.5

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,  # (B, T, D)
        layer_past: Cache | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        rotation: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        assert rotation is not None, "GPTJModel.forward of this module hands the rotation over"
        shape = (*hidden_states.shape[:-1], self.num_attention_heads, self.head_dim)
        query = self._rotate(self.q_proj(hidden_states).view(shape), *rotation)
        key = self._rotate(self.k_proj(hidden_states).view(shape), *rotation)
        query, key = query.transpose(1, 2), key.transpose(1, 2)  # (B, H, T, K)
        value = self.v_proj(hidden_states).view(shape).transpose(1, 2)
        if layer_past is not None:
            key, value = layer_past.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS[self.config._attn_implementation]
        kwargs.pop("output_attentions", None)
        kwargs.pop("use_cache", None)
        out, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attn_dropout.p if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        out = self.out_proj(out.reshape(*hidden_states.shape[:-1], self.embed_dim))
        return self.resid_dropout(out), weights

    def _rotate(self, heads: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        """Rotate the first R of K numbers of each head; `heads` is (B, T, H, K)."""
        if self.rotary_dim is None:
            return _rotated(heads, sin, cos)
        rotary, rest = heads.split((self.rotary_dim, self.head_dim - self.rotary_dim), dim=-1)
        return torch.cat((_rotated(rotary, sin, cos), rest), dim=-1)


def _rotated(x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    """Rotate pairs of neighbours, as GPT-J does; sin and cos are (B or 1, T, 1, R)."""
    return x * cos + gptj.rotate_every_two(x) * sin


def _block_forward(
    self: gptj.GPTJBlock, hidden_states: Tensor, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """GPTJBlock.forward that hands what it does not know on to the attention."""
    normed = self.ln_1(hidden_states)
    attended, weights = self.attn(hidden_states=normed, **kwargs)
    return attended + self.mlp(normed) + hidden_states, weights


def _model_forward(
    self: gptj.GPTJModel,
    input_ids: Tensor | None = None,
    past_key_values: Cache | None = None,
    attention_mask: Tensor | None = None,
    token_type_ids: Tensor | None = None,
    position_ids: Tensor | None = None,
    inputs_embeds: Tensor | None = None,
    use_cache: bool | None = None,
    **kwargs: Any,
) -> Any:
    """GPTJModel.forward that makes the rotation once for all layers, and keeps `kwargs`."""
    wants_more = kwargs.get("output_attentions") or kwargs.get("output_hidden_states")
    if self.config._attn_implementation in _OWN_CODE or token_type_ids is not None or wants_more:
        return _EAGER_MODEL_FORWARD(
            self,
            input_ids=input_ids,
            past_key_values=past_key_values,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
    use_cache = self.config.use_cache if use_cache is None else use_cache
    if self.gradient_checkpointing and self.training:
        use_cache = False
    hidden = self.wte(input_ids) if inputs_embeds is None else inputs_embeds
    if use_cache and past_key_values is None:
        past_key_values = DynamicCache(config=self.config)
    if position_ids is None:
        before = past_key_values.get_seq_length() if past_key_values is not None else 0
        position_ids = (torch.arange(hidden.shape[1], device=hidden.device) + before).unsqueeze(0)
    mask = create_causal_mask(
        config=self.config,
        inputs_embeds=hidden,
        attention_mask=attention_mask,
        past_key_values=past_key_values,
        position_ids=position_ids,
    )
    kwargs.pop("return_dict", None)
    rotation = _rotation(cast(Any, self.h[0]).attn, position_ids, hidden)
    hidden = self.drop(hidden)
    for block in self.h:
        hidden, _ = block(
            hidden,
            layer_past=past_key_values,
            attention_mask=mask,
            position_ids=position_ids,
            rotation=rotation,
            **kwargs,
        )
    return BaseModelOutputWithPast(
        last_hidden_state=self.ln_f(hidden), past_key_values=past_key_values
    )


def _rotation(attention: Any, position_ids: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Sine and cosine for each position, each twice in a row: two of (B or 1, T, 1, R)."""
    # It repeats the whole table for each row that it is given.
    table = attention._get_embed_positions(position_ids[:1])[0]  # (positions, R)
    sin, cos = table[position_ids].to(like.dtype).chunk(2, dim=-1)
    sin, cos = (x.repeat_interleave(2, dim=-1).unsqueeze(2) for x in (sin, cos))
    return sin, cos


def _mlp_init(self: Any, *args: Any, **kwargs: Any) -> None:
    """GPTJMLP.__init__ that takes torch's GELU of the same formula."""
    _MLP_INIT(self, *args, **kwargs)
    if isinstance(self.act, NewGELUActivation):
        self.act = nn.GELU(approximate="tanh")


def install() -> None:
    """Let transformers' GPT-J take `attn_implementation="sdpa"`; may be called again."""
    for name in ALL_ATTENTION_FUNCTIONS.valid_keys():
        if name not in _OWN_CODE:
            gptj.GPTJ_ATTENTION_CLASSES[name] = GPTJInterfaceAttention
    gptj.GPTJPreTrainedModel._supports_sdpa = True
    gptj.GPTJPreTrainedModel._supports_attention_backend = True
    for cls, forward in ((gptj.GPTJBlock, _block_forward), (gptj.GPTJModel, _model_forward)):
        setattr(cls, "forward", forward)  # noqa: B010  mypy takes no assignment to a method
    setattr(gptj.GPTJMLP, "__init__", _mlp_init)  # noqa: B010  mypy, as above
    gptj.GPTJBlock.__init_subclass__()  # wraps forward in gradient checkpointing, as for any layer
