"""The learning rate of each step: a warm-up, then down a line or half a cosine, or level.

Source: transformers' `get_linear_schedule_with_warmup`, which the reference's Trainer uses,
`get_polynomial_decay_schedule_with_warmup` (power 1: a line that ends above 0),
`get_cosine_schedule_with_warmup` and `get_cosine_with_min_lr_schedule_with_warmup`,
`get_constant_schedule_with_warmup` and `get_wsd_schedule`.
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from trainer.contract.topics import ScheduleConfig


class Shortened(NamedTuple):
    """A schedule that ends before its steps do: see trainer/training/limits/budget.py."""

    begin: int
    """The step from which the schedule is another."""
    learn_rate: float
    """There."""
    steps: int
    """In all."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The rate of steps 0 to `steps` - 1."""

    steps: int
    """Of the whole schedule."""
    learn_rate: float
    warmup_ratio: float
    config: ScheduleConfig = field(default_factory=ScheduleConfig)

    @property
    def warmup(self) -> int:
        """Steps in which the rate rises."""
        return self.config.warmup_steps or math.ceil(self.steps * self.warmup_ratio)

    @property
    def floor(self) -> float:
        """Where the rate falls to."""
        return self.config.min_rate * self.learn_rate

    def rate(self, step: int) -> float:
        """Of a step of the whole schedule."""
        if step < self.warmup:
            return self._rising(step)
        if self.config.kind == "linear":
            return self._on_line(step, self.warmup, self.learn_rate, self.steps)
        if self.config.kind == "constant":
            return self.learn_rate
        if self.config.kind == "cosine":
            return self._on_cosine(step, self.warmup, 0.0, self.steps)
        begin = max(self.warmup, self.steps - self._decay(self.steps))
        return self.learn_rate if step < begin else self._on_cosine(step, begin, 0.0, self.steps)

    def shortened_rate(self, step: int, shortened: Shortened) -> float:
        """Of a step from `shortened.begin` on: down the rest of the curve, by the new end.

        A constant rate just ends. Of kind wsd the rate falls in the last steps alone, as many of
        them as its decay takes of the whole, unless it is falling already.
        """
        begin, rate, steps = shortened
        if self.config.kind == "linear":
            return self._on_line(step, begin, rate, steps)
        if self.config.kind == "constant":
            return self.rate(step)
        if self.config.kind == "wsd":
            return self._shortened_wsd(step, shortened)
        return self._on_cosine(step, begin, self._progress_at(rate), steps)

    def _shortened_wsd(self, step: int, shortened: Shortened) -> float:
        begin, rate, steps = shortened
        if rate < self._before_decay(begin):
            return self._on_cosine(step, begin, self._progress_at(rate), steps)
        decay = max(begin, steps - self._decay(steps))
        if step < decay:
            return self._before_decay(step)
        progress = self._progress_at(self._before_decay(decay))
        return self._on_cosine(step, decay, progress, steps)

    def _before_decay(self, step: int) -> float:
        return self._rising(step) if step < self.warmup else self.learn_rate

    def _rising(self, step: int) -> float:
        share = step / max(1, self.warmup)
        if self.config.kind == "wsd":  # transformers' begins at the least rate
            return self._above_floor(share)
        return self.learn_rate * step / max(1, self.warmup)

    def _decay(self, steps: int) -> int:
        return math.ceil(steps * self.config.decay_ratio)

    def _on_line(self, step: int, begin: int, rate: float, end: int) -> float:
        """From `rate` at `begin` to the floor at `end`."""
        left, whole = max(0, end - step), max(1, end - begin)
        if not self.config.min_rate:
            return rate * left / whole
        floor = min(self.floor, rate)
        return (rate - floor) * left / whole + floor

    def _on_cosine(self, step: int, begin: int, progress: float, end: int) -> float:
        """Along half a cosine, from `progress` (0 to 1) of it at `begin` to its end at `end`."""
        gone = min(1.0, (step - begin) / max(1, end - begin))
        progress += (1 - progress) * gone
        return self._above_floor(0.5 * (1.0 + math.cos(math.pi * progress)))

    def _above_floor(self, share: float) -> float:
        least = self.config.min_rate
        return self.learn_rate * (share * (1.0 - least) + least)

    def _progress_at(self, rate: float) -> float:
        """How far along half a cosine the rate is there."""
        room = self.learn_rate - self.floor
        share = (rate - self.floor) / room if room > 0 else 0.0
        return math.acos(2 * min(1.0, max(0.0, share)) - 1) / math.pi
