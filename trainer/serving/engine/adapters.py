"""LoRA's adapters of several runs beside one base model: each row of a batch has its own, or none.

    y = base(x) + scale * B(A(x))      for the rows of that adapter alone

A layer of the base model is computed once for all rows. An adapter that replaces another of its
name answers what is asked from then on; running answers finish with the weights they began with.

Shapes: N rows, T tokens, R rank of an adapter.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers.pytorch_utils import Conv1D

from trainer.contract.errors import RequestError
from trainer.contract.json_text import parse_json

SETTINGS = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."  # of peft, before a layer's name
PROBE_ROWS, PROBE_COLUMNS = 3, 5
# Settings of peft's that change what an adapter computes, and that are not computed here.
UNSUPPORTED = (
    "use_dora",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "lora_bias",
    "target_parameters",
    "trainable_token_indices",
    "layer_replication",
)


@dataclass(frozen=True, eq=False)
class Adapter:
    """One adapter's matrices by layer: A of shape (R, inputs), B of shape (outputs, R)."""

    scale: float
    layers: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(repr=False)

    def delta(self, layer: str, x: torch.Tensor) -> torch.Tensor:
        """What the adapter adds to a layer's output for x of shape (..., inputs)."""
        a, b = self.layers[layer]
        return (x.to(a.dtype) @ a.T @ b.T) * self.scale


class AdapterRows:
    """The adapters of one model by name, and those of the rows that it computes now."""

    def __init__(self, model: Any) -> None:
        """Prepare `model`, which answers as before for rows without an adapter."""
        self._model = model
        self._rows: Sequence[Adapter | None] = ()
        self._by_name: dict[str, Adapter] = {}
        self._layers = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear | Conv1D)
        }
        self._with_rows = self._layers_with_rows()
        for name, module in self._layers.items():
            module.register_forward_hook(partial(self._add, name))

    def load(self, folder: Path, base: str) -> Adapter:
        """Read an adapter's folder, checked against the model.

        Args:
            folder: With peft's two files.
            base: The base model that it must have been trained on, as its settings name it.
        Raises:
            RequestError: It can't be served beside others on this model.
        """
        settings = read_settings(folder, base)
        layers = self._read(folder)
        rank, alpha = settings["r"], settings["lora_alpha"]
        scale = alpha / rank**0.5 if settings.get("use_rslora") else alpha / rank
        return Adapter(scale, layers)

    def put(self, name: str, adapter: Adapter) -> None:
        """Have what is asked of `name` from now on answered with `adapter`."""
        self._by_name[name] = adapter

    def drop(self, name: str) -> None:
        self._by_name.pop(name, None)

    def named(self, name: str) -> Adapter | None:
        """The adapter of that name; None for '', the base model.

        Raises:
            ValueError: It is not here any more.
        """
        if not name:
            return None
        if name not in self._by_name:
            raise ValueError(f"model {name!r} is not served any more.")
        return self._by_name[name]

    @contextlib.contextmanager
    def of(self, rows: Sequence[Adapter | None]) -> Iterator[None]:
        """Compute passes in the block with these adapters, one for each row."""
        self._rows = rows
        try:
            yield
        finally:
            self._rows = ()

    def _add(self, layer: str, module: Any, inputs: Any, output: torch.Tensor) -> Any:
        """Add to a layer's output, shape (N, T, outputs), what the rows' adapters say."""
        adapters = [a for a in dict.fromkeys(self._rows) if a is not None and layer in a.layers]
        for adapter in adapters:
            if all(row is adapter for row in self._rows):  # candidates of a search, too
                return output + adapter.delta(layer, inputs[0]).to(output.dtype)
            mine = [number for number, row in enumerate(self._rows) if row is adapter]
            index = torch.tensor(mine, device=output.device)
            delta = adapter.delta(layer, inputs[0][index]).to(output.dtype)
            output = output.index_add(0, index, delta)
        return output

    def _read(self, folder: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        found: dict[str, dict[str, torch.Tensor]] = {}
        for key, tensor in load_file(folder / WEIGHTS).items():
            layer, _, kind = key.removeprefix(PREFIX).removesuffix(".weight").rpartition(".")
            if kind not in ("lora_A", "lora_B") or layer not in self._with_rows:
                raise RequestError(
                    f"adapter {_shown(folder)} changes what is no linear layer with a row for each "
                    f"text (got {key!r}). Serve its merged model by itself."
                )
            like = self._layers[layer].weight
            moved = tensor.to(device=like.device, dtype=like.dtype)
            found.setdefault(layer, {})[kind] = moved
        return {layer: (pair["lora_A"], pair["lora_B"]) for layer, pair in found.items()}

    def _layers_with_rows(self) -> frozenset[str]:
        """Layers whose first dimension is the rows: experts, for instance, mix all tokens."""
        seen: set[str] = set()

        def note(name: str, module: Any, inputs: Any) -> None:
            shape = inputs[0].shape
            if len(shape) == 3 and shape[0] == PROBE_ROWS:
                seen.add(name)

        hooks = [
            module.register_forward_pre_hook(partial(note, name))
            for name, module in self._layers.items()
        ]
        ids = torch.zeros(PROBE_ROWS, PROBE_COLUMNS, dtype=torch.long, device=self._model.device)
        try:
            with torch.inference_mode():
                self._model(input_ids=ids, use_cache=False)
        finally:
            for hook in hooks:
                hook.remove()
        return frozenset(seen)


def read_settings(folder: Path, base: str = "") -> dict[str, Any]:
    """An adapter's settings.

    Raises:
        RequestError: There are none, they are of another base than `base`, or of another kind.
    """
    try:
        settings = parse_json((folder / SETTINGS).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RequestError(
            f"{folder.parent.parent.name!r} left no adapter (got no {_shown(folder)}/{SETTINGS}). "
            "Train it with lora, or leave it out of serving.adapters."
        ) from error
    named = settings.get("base_model_name_or_path")
    if base and named != base:
        raise RequestError(
            f"adapter {_shown(folder)} is of another base model (got {named!r}). "
            f"Those served together are of {base!r}."
        )
    if settings.get("peft_type", "LORA") != "LORA":
        raise RequestError(f"adapter {_shown(folder)} is no LoRA (got {settings['peft_type']}).")
    if wrong := [name for name in UNSUPPORTED if settings.get(name)]:
        raise RequestError(
            f"adapter {_shown(folder)} can't be served beside others (got {', '.join(wrong)}). "
            "Serve its merged model by itself."
        )
    return settings


def _shown(folder: Path) -> str:
    """An adapter's folder on its volume: clients see it, and need not see where that is."""
    return "/".join(folder.parts[-3:])
