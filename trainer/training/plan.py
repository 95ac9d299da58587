"""Which contexts make up each optimizer step, and at what learning rate: plain arithmetic."""

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from trainer.training.order import Order


class Shortened(NamedTuple):
    """A schedule that ends before its epochs do: see trainer/training/budget.py."""

    begin: int
    """The step from which the learning rate falls to 0, from 0."""
    learn_rate: float
    """There."""
    steps: int
    """In all."""


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """The steps of a run, the same for any number of processes.

    A step takes `global_batch` contexts, the last of an epoch what is left. One
    process works on `batch_size` of them at a time.
    """

    num_contexts: int
    global_batch: int
    batch_size: int
    epochs: int
    seed: int
    shuffle: bool
    learn_rate: float
    warmup_ratio: float
    shortened: Shortened | None = None

    @property
    def steps_per_epoch(self) -> int:
        """2,238 for the reference's published run: 44,760 contexts, 4 x 5 a step."""
        return math.ceil(self.num_contexts / self.global_batch)

    @property
    def steps(self) -> int:
        return self.shortened.steps if self.shortened else self.whole_steps

    @property
    def whole_steps(self) -> int:
        """Of all epochs."""
        return self.steps_per_epoch * self.epochs

    def shortened_to(self, steps: int, begin: int) -> "TrainingPlan":
        """The same up to step `begin`; from there the learning rate falls to 0 at `steps`."""
        return replace(self, shortened=Shortened(begin, self.learning_rate(begin), steps))

    def place(self, step: int) -> tuple[int, int, int]:
        """Epoch, first position and the one after the last, of step 0 to steps - 1."""
        epoch, within = divmod(step, self.steps_per_epoch)
        start = within * self.global_batch
        return epoch, start, min(start + self.global_batch, self.num_contexts)

    def contexts_of(self, step: int) -> np.ndarray:
        """Indexes of the contexts of a step, in order."""
        order = Order(self.num_contexts, self.seed, self.shuffle)
        return order.contexts(*self.place(step))

    def share(self, contexts: np.ndarray, rank: int, world: int) -> list[np.ndarray]:
        """The micro-batches that fall to one process, as many for each; some may be empty."""
        stride = self.batch_size * world
        first = rank * self.batch_size
        return [
            contexts[start + first : start + first + self.batch_size]
            for start in range(0, len(contexts), stride)
        ]

    def learning_rate(self, step: int) -> float:
        """The rate of step 0 to steps - 1: linear warm-up from 0, then linear decay to 0.

        Source: the schedule of transformers' Trainer (`get_linear_schedule_with_warmup`),
        which the reference trains with.
        """
        if self.shortened and step >= self.shortened.begin:
            begin, rate, steps = self.shortened
            return rate * max(0, steps - step) / max(1, steps - begin)
        steps = self.whole_steps
        warmup = math.ceil(steps * self.warmup_ratio)
        if step < warmup:
            return self.learn_rate * step / max(1, warmup)
        return self.learn_rate * max(0, steps - step) / max(1, steps - warmup)

    def to_record(self) -> dict[str, Any]:
        """What run.json and every checkpoint say about it."""
        return {
            "steps": self.steps,
            "global_batch": self.global_batch,
            "batch_size": self.batch_size,
            "num_contexts": self.num_contexts,
        }
