"""What a replay measures at each step beside the numbers that every run records.

The loss of each context and the ranges of activations before the step, and by layer the norms of
gradient and update. Nothing here changes a number that is trained: losses are measured in
evaluation mode, and norms are worked out from copies of weights and moments, 8 bytes for each
trained weight.
"""

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.tokens.pair_contexts import loss_terms
from trainer.tokens.store import TokenStore
from trainer.training.data.batches import read_batch
from trainer.training.engine.engine import Engine, layers_of
from trainer.training.engine.partitions import bring_up_to_date, slices_to_save
from trainer.training.save.seeds_and_records import finite

NAME = "instruments.jsonl"
_LAYER = re.compile(r"^(.*?\.\d+)\.")


class Instruments:
    """Of one process; the first one writes."""

    def __init__(self, engine: Engine, store: TokenStore, run: Path, first_step: int) -> None:
        """Begin to measure.

        Args:
            run: The folder that the lines go to.
            first_step: Number of the first step that is measured, from 1.
        """
        self._engine, self._store, self._first = engine, store, first_step
        self._slices = slices_to_save(engine)
        trained = [engine.names[id(p)] for p in engine.model.parameters() if p.requires_grad]
        self.layers = sorted(set(map(layer_of, trained)))
        self._before: list[tuple[Tensor, Tensor]] = []
        self._contexts: list[dict[str, Any]] = []
        self._ranges: dict[str, tuple[float, float]] = {}
        self._path = run / NAME
        if engine.options.rank == 0:
            self._path.write_text("", encoding="utf-8")

    def before(self, step: int, contexts: np.ndarray) -> None:
        """Measure the losses of the step's contexts, and remember weights and moments."""
        self._before = []
        if step < self._first:
            return
        with self._activations():
            self._contexts = self._losses(contexts)
        bring_up_to_date(self._engine)
        self._before = [
            (piece.tensors["weight"].detach().clone(), piece.tensors["exp_avg"].detach().clone())
            for piece in self._slices
        ]

    def after(self, step: int) -> None:
        """Write the step's line."""
        if step < self._first:
            return
        bring_up_to_date(self._engine)
        line = {
            "step": step,
            "contexts": self._contexts,
            "layers": self._norms(),
            "activations": {
                layer: {"least": finite(low), "largest": finite(high)}
                for layer, (low, high) in self._ranges.items()
            },
        }
        if self._engine.options.rank == 0:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    @contextmanager
    def _activations(self) -> Iterator[None]:
        """Note the least and the largest number that each layer hands on; not finite where one is.

        Of the layers as the process runs them: with all contexts each process sees them all.
        """
        self._ranges = {}

        def hook(name: str) -> Any:
            def look(module: Any, given: Any, made: Any) -> None:
                hidden = made[0] if isinstance(made, tuple) else made
                low, high = (float(end) for end in torch.aminmax(hidden.detach().float()))
                before = self._ranges.get(name, (low, high))
                # min() and max() of Python hide what is not a number.
                ends = np.array([[low, high], before])
                self._ranges[name] = float(ends[:, 0].min()), float(ends[:, 1].max())

            return look

        names = {id(module): name for name, module in self._engine.model.named_modules()}
        hooks = [
            layer.register_forward_hook(hook(names[id(layer)]))
            for layer in layers_of(self._engine.model)
        ]
        try:
            yield
        finally:
            for each in hooks:
                each.remove()

    def _losses(self, contexts: np.ndarray) -> list[dict[str, Any]]:
        """Each context's mean loss; every process does all of them, so that all take part."""
        found = []
        with self._engine.evaluating():
            for context in contexts.tolist():
                batch = read_batch(self._store, np.array([context]))
                tokens = self._store.trained_tokens(np.array([context]))
                terms = loss_terms(self._store, np.array([context]))
                loss = float(self._engine.loss(*batch.given)) / max(1, terms)
                spans = self._store.document_of(context)
                documents = list(dict.fromkeys(f"{s.path}#{s.number}" for s in spans))
                found.append(
                    {
                        "context": context,
                        "loss": finite(loss),
                        "tokens": tokens,
                        "documents": documents,
                    }
                )
        return found

    def _norms(self) -> dict[str, dict[str, float | None]]:
        """By layer: of the gradient as Adam took it (clipped), of the update, of the weights.

        Adam's first moment is m' = beta1 m + (1 - beta1) g, so g follows from two of them: for
        each ZeRO stage alike. Source: Kingma and Ba, 2015, algorithm 1.
        """
        beta1 = self._engine.zero.param_groups[0]["betas"][0]
        squares = {layer: [0.0, 0.0, 0.0] for layer in self.layers}
        for piece, (weight, moment) in zip(self._slices, self._before, strict=True):
            sums = squares[layer_of(piece.name)]
            now = piece.tensors["weight"].detach()
            gradient = (piece.tensors["exp_avg"].detach() - beta1 * moment) / (1 - beta1)
            for at, numbers in enumerate((gradient, now - weight, now)):
                sums[at] += float(torch.sum(numbers.double() ** 2))
        flat = [value for layer in self.layers for value in squares[layer]]
        total = iter(self._engine.sum_over_processes(*flat))
        names = ("gradient_norm", "update_norm", "weight_norm")
        return {
            layer: {name: finite(math.sqrt(next(total))) for name in names} for layer in self.layers
        }


def layer_of(name: str) -> str:
    """The layer that a parameter belongs to: up to its number, else its module."""
    found = _LAYER.match(name)
    return found[1] if found else name.rpartition(".")[0] or name
