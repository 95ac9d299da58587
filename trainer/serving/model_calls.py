"""Call any causal language model with the arguments that its `forward` takes, and no others."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from transformers.cache_utils import DynamicCache

# Outputs that some forward methods also take as arguments, and that are no cache.
_NOT_CACHE = frozenset({"loss", "logits", "hidden_states", "attentions", "inputs_embeds"})


class ModelCall:
    """One model's forward pass for inference."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._takes = frozenset(inspect.signature(model.forward).parameters)
        self.cache_argument = "cache_params" if "cache_params" in self._takes else "past_key_values"

    @property
    def takes_cache(self) -> bool:
        return self.cache_argument in self._takes

    def __call__(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor | None,
        positions: torch.Tensor,
        *,
        cache: Mapping[str, Any] | None = None,
        use_cache: bool = True,
        keep: int = 0,
    ) -> Any:
        """transformers' output of `ids`; its logits have shape (rows, T or `keep`, vocabulary).

        Args:
            ids: Token ids, shape (rows, T).
            mask: 1 for text and 0 for padding, shape (rows, cached columns + T); None: no padding.
            positions: Position of each id, shape (rows, T).
            cache: The cache by the name of its argument; None: the model makes its own.
            keep: Return logits of so many last columns; 0: of all.
        """
        device = self.model.device
        if mask is not None and self.cache_argument == "cache_params":
            mask = mask[:, -ids.shape[1] :]  # models that keep states alone mask the new columns
        wanted: dict[str, Any] = {
            "input_ids": ids.to(device),
            "attention_mask": None if mask is None else mask.to(device),
            "position_ids": positions.to(device),
            "use_cache": use_cache,
            "logits_to_keep": keep,
            "return_dict": True,
            **(cache or {}),
        }
        given = {name: value for name, value in wanted.items() if name in self._takes}
        output = self.model(**given)
        if keep:
            output["logits"] = output["logits"][:, -keep:]
        return output

    def new_cache(self) -> dict[str, Any]:
        """An empty cache of transformers, for a model that makes none itself."""
        if not self.takes_cache:
            raise ValueError("the model has no cache")
        return {self.cache_argument: DynamicCache(config=self.model.config)}

    def own_cache(self, output: Any) -> dict[str, Any]:
        """The cache that the model itself made, by the names under which it is taken back."""
        names = (set(output.keys()) & self._takes) - _NOT_CACHE
        return {name: output[name] for name in names if output[name] is not None}


def whole_pass(call: ModelCall, ids: torch.Tensor, keep: int = 0) -> torch.Tensor:
    """Logits of one whole text without any cache, shape (T or `keep`, vocabulary), float32."""
    row = ids.unsqueeze(0)  # (1, T)
    positions = torch.arange(len(ids)).unsqueeze(0)
    output = call(row, None, positions, use_cache=False, keep=keep)
    return output.logits[0].float().cpu()
