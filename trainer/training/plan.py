"""Which contexts make up each optimizer step, and at what learning rate: plain arithmetic."""

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from trainer.contract.topics import ScheduleConfig
from trainer.training.data.left_out import LeftOutContexts
from trainer.training.data.order import Order
from trainer.training.schedule import Schedule, Shortened


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
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    shortened: Shortened | None = None
    left_out: tuple[tuple[int, int], ...] = ()
    """Contexts that no epoch trains on, as stretches; they keep their places in the order."""

    @property
    def steps_per_epoch(self) -> int:
        """2,238 for the reference's published run: 44,760 contexts, 4 x 5 a step."""
        return math.ceil(self.num_contexts / self.global_batch)

    @property
    def steps(self) -> int:
        return self.shortened.steps if self.shortened else self.whole_steps

    @property
    def whole_steps(self) -> int:
        """Of all epochs, or as many of them as `max_steps` allows."""
        of_epochs = self.steps_per_epoch * self.epochs
        return min(of_epochs, self.schedule.max_steps or of_epochs)

    def shortened_to(self, steps: int, begin: int) -> "TrainingPlan":
        """The same up to step `begin`; from there a schedule that ends at `steps`."""
        return replace(self, shortened=Shortened(begin, self.learning_rate(begin), steps))

    @property
    def last_rate_in_words(self) -> str:
        """What the learning rate does towards the last step."""
        if self.schedule.kind == "constant":
            return "The learning rate stays as it is"
        return f"The learning rate falls to {self.schedule.min_rate * self.learn_rate:g} there"

    def place(self, step: int) -> tuple[int, int, int]:
        """Epoch, first position and the one after the last, of step 0 to steps - 1."""
        epoch, within = divmod(step, self.steps_per_epoch)
        start = within * self.global_batch
        return epoch, start, min(start + self.global_batch, self.num_contexts)

    def contexts_of(self, step: int) -> np.ndarray:
        """Indexes of the contexts of a step, in order."""
        order = Order(self.num_contexts, self.seed, self.shuffle)
        return order.contexts(*self.place(step))

    @cached_property
    def _left_out(self) -> LeftOutContexts:
        return LeftOutContexts(self.left_out)

    def kept(self, contexts: np.ndarray) -> np.ndarray:
        """Those of `contexts` that are trained on."""
        return self._left_out.kept(contexts)

    def share(self, contexts: np.ndarray, rank: int, world: int) -> list[np.ndarray]:
        """The micro-batches that fall to one process, as many for each; some may be empty.

        A context that is left out leaves its place empty: every other one stays in its process
        and micro-batch. A micro-batch of which no process has anything left is none.
        """
        stride = self.batch_size * world
        first = rank * self.batch_size
        return [
            self.kept(contexts[start + first : start + first + self.batch_size])
            for start in range(0, len(contexts), stride)
            if not self.left_out or len(self.kept(contexts[start : start + stride]))
        ]

    def learning_rate(self, step: int) -> float:
        """The rate of step 0 to steps - 1."""
        curve = Schedule(
            steps=self.whole_steps,
            learn_rate=self.learn_rate,
            warmup_ratio=self.warmup_ratio,
            config=self.schedule,
        )
        if self.shortened and step >= self.shortened.begin:
            return curve.shortened_rate(step, self.shortened)
        return curve.rate(step)

    def to_record(self) -> dict[str, Any]:
        """What run.json and every checkpoint say about it."""
        return {
            "steps": self.steps,
            "global_batch": self.global_batch,
            "batch_size": self.batch_size,
            "num_contexts": self.num_contexts,
            **({"left_out": [list(stretch) for stretch in self.left_out]} if self.left_out else {}),
        }
