"""How many optimizer steps a text gives, what to do about few of them, and which are validated."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from trainer.contract.parameters import Parameters

ENOUGH_STEPS = 100
"""That a batch which is worked out leaves, where the text has them."""
FEW_STEPS = 30
"""Below this most of a run is warm-up, and the first step's rate is next to 0."""
CURVE_POINTS = 10
"""Validations of a run that ends before its first checkpoint would be due."""
GRADIENTS: int = Parameters.model_fields["gradients"].default


@dataclass(frozen=True, kw_only=True)
class StepCount:
    """What the number of steps depends on, beside the batch."""

    contexts: int
    """Trained on in an epoch."""
    epochs: int = 1
    processes: int = 1
    """Of all nodes together."""
    gradients: int = 1
    """Micro-batches a step, as asked."""
    max_steps: int = 0
    """0: no limit."""

    def steps(self, batch_size: int, gradients: int) -> int:
        """Of all epochs: `max_steps` does not count."""
        each = batch_size * gradients * self.processes
        return math.ceil(self.contexts / each) * self.epochs

    def enough(self, batch_size: int) -> tuple[int, int]:
        """The batch size, and gradients, that leave ENOUGH_STEPS, or as many as the text has.

        The largest up to `batch_size`, which keeps the device busy. Gradients become fewer first,
        and only if they are the parameter's default: other numbers are a choice.
        """
        wanted = min(ENOUGH_STEPS, self.max_steps or ENOUGH_STEPS)
        sizes = self._smaller(batch_size)
        return next((size for size in sizes if self.steps(*size) >= wanted), self._least)

    def _smaller(self, batch_size: int) -> Iterator[tuple[int, int]]:
        least = self._least[1]
        yield from ((batch_size, gradients) for gradients in range(self.gradients, least, -1))
        yield from ((size, least) for size in range(batch_size, 0, -1))

    @property
    def _least(self) -> tuple[int, int]:
        return 1, 1 if self.gradients == GRADIENTS else self.gradients

    @classmethod
    def of(cls, parameters: Mapping[str, Any], contexts: int, processes: int) -> "StepCount":
        """Of a run with the flow's parameters."""
        return cls(
            contexts=contexts,
            epochs=parameters["epochs"],
            processes=processes,
            gradients=parameters["gradients"],
            max_steps=(parameters.get("schedule") or {}).get("max_steps", 0),
        )


def curve_steps(steps: int, save_steps: int) -> frozenset[int]:
    """Steps that are validated although no checkpoint is made there.

    None where checkpoints fall within the run: they are validated, as they always were.
    """
    if save_steps <= steps:
        return frozenset()
    return frozenset(steps * point // CURVE_POINTS for point in range(1, CURVE_POINTS)) - {0}


def fewer_gradients(asked: int, taken: int) -> str:
    """Say that a step has fewer micro-batches than asked; empty: it has not."""
    if asked == taken:
        return ""
    return (
        f"gradients is {taken}, not {asked}, so that the text gives more optimizer steps. "
        "Set batch_size to have both as asked"
    )


def few_steps(steps: int, global_batch: int) -> str:
    """Say that there are few steps, and what to do; empty: there are not, or none at all."""
    if not 0 < steps < FEW_STEPS:
        return ""
    return (
        f"the text gives {steps} optimizer steps of {global_batch} contexts. A model learns "
        "little in so few. Set batch_size, gradients or context lower, epochs higher, or bring "
        "more text"
    )
