"""Where the time of a training process goes, and how long the rest will take."""

import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from trainer.report import journal

# What the kinds of work are called where a run's time is added up.
PHASES = {
    "data": "data wait",
    "checkpoint": "checkpoint stall",
    "validation": "evaluation",
    "samples": "evaluation",
}


RECENT = 100
"""Pieces of work by which the time left is told; how busy the machine was before says little."""


class Pace:
    """Counts and adds up seconds by kind of work, in this process alone."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._recent: dict[str, deque[float]] = {}
        self._counts: dict[str, int] = {}
        self._shared: dict[str, float] = {}
        self._shared_at = time.monotonic()

    @contextmanager
    def timing(self, kind: str) -> Iterator[None]:
        """Count the block as one piece of work of a kind."""
        began = time.monotonic()
        with journal.phase(PHASES[kind]):
            yield
        self.add(kind, time.monotonic() - began)

    def add(self, kind: str, seconds: float) -> None:
        self._seconds[kind] = self.seconds(kind) + seconds
        self._counts[kind] = self._counts.get(kind, 0) + 1
        self._recent.setdefault(kind, deque(maxlen=RECENT)).append(seconds)

    def seconds(self, kind: str) -> float:
        return self._seconds.get(kind, 0.0)

    def mean(self, kind: str) -> float:
        """Seconds of a piece of work of a kind; 0 where none was done yet."""
        return self.seconds(kind) / self._counts[kind] if kind in self._counts else 0.0

    def recent_mean(self, kind: str) -> float:
        """The same of the latest pieces alone."""
        recent = self._recent.get(kind)
        return sum(recent) / len(recent) if recent else 0.0

    def shares(self, **seconds: float) -> dict[str, float]:
        """What part of the time since the last call each of some sums has grown by."""
        now = time.monotonic()
        passed = max(now - self._shared_at, 1e-9)
        shares = {
            name: min(1.0, (total - self._shared.get(name, 0.0)) / passed)
            for name, total in seconds.items()
        }
        self._shared, self._shared_at = seconds, now
        return shares

    def remaining_seconds(
        self, left: Mapping[str, int], expected: Mapping[str, float], *, recent: bool = False
    ) -> float:
        """How long the pieces of work that are left will take.

        Args:
            left: How many of each kind.
            expected: Seconds for a piece of a kind of which none was done yet.
            recent: Go by the latest pieces alone.
        """
        mean = self.recent_mean if recent else self.mean
        return sum(n * (mean(kind) or expected.get(kind, 0.0)) for kind, n in left.items())


def times_left(every: int, done: int, total: int) -> int:
    """How often something comes that is done each `every` steps (0: never) and after the last."""
    if done >= total:
        return 0
    return (total // every - done // every) + (total % every > 0) if every else 1
