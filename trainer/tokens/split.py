"""Which text is held out: decided by each document's content alone.

A document's hash decides, not its name, place or neighbours, so that adding or removing
files moves no other. A document so long that it would miss the share by itself gives
stretches of its own instead, cut at boundary tokens, from a place that its hash draws:
three novels at `train_ratio=0.9` hold out a tenth of each.

Few short documents may miss the share by chance. Then the threshold moves, in coarse
steps, until the share is within a fifth; only documents between the steps move.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

_STRETCH_TOKENS = 65_536
_WHOLE = 1 << 64
_SHORTEST_STRETCH = 256
_TOLERANCE = 0.15  # of the share; a fifth is promised, and the long ones' cuts take some
_STEPS = 1.25 ** np.array(sorted(range(-20, 21), key=lambda k: (abs(k), -k)))

Read = Callable[[int, int], np.ndarray]
"""Ids of a document from one position to another."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """How the stream is divided in two."""

    share: float
    """Of the tokens that is held out, 0 to 1."""
    context: int
    boundary: int | None
    begins_inside: np.ndarray
    threshold: int = 0
    """Documents with a smaller hash are held out, of those that are not cut."""

    def with_threshold(self, threshold: int) -> "Split":
        """The same, with the threshold that the corpus needs."""
        return replace(self, threshold=threshold)

    def is_long(self, tokens: np.ndarray | int) -> np.ndarray | bool:
        """Whether documents of so many tokens give stretches."""
        shortest = min(_SHORTEST_STRETCH, self.context)
        if not self.share:
            return tokens != tokens  # none, in the shape of what was asked
        return (tokens * self.share >= shortest) | (tokens >= 20 * self.context)

    def stretches(self, document_hash: int, length: int, read: Read) -> list[tuple[int, int]]:
        """The held-out stretches of a long document, as positions in it."""
        if self.share >= 1:
            return [(0, length)]
        count = max(1, round(length * self.share / _STRETCH_TOKENS))
        period = length / count
        size = max(1, int(period * self.share))
        shift = document_hash / _WHOLE * (period - size)
        found = []
        for index in range(count):
            begin = int(index * period + shift)
            begin, end = self._snap(begin, size, read), self._snap(begin + size, size, read)
            found.append((begin, min(max(begin + 1, end), length)))
        return found

    def _snap(self, position: int, size: int, read: Read) -> int:
        """The place after the next boundary token, unless it is far; never inside a character."""
        if not position:
            return 0
        ids = read(position, position + max(8, size // 10))
        if self.boundary is not None:
            at = np.flatnonzero(ids == self.boundary)
            if len(at):
                return position + int(at[0]) + 1
        whole = np.flatnonzero(~self.begins_inside[ids])
        return position + (int(whole[0]) if len(whole) else 0)


class ShareCount:
    """Finds the threshold from the hashes and lengths of all documents."""

    def __init__(self, split: Split) -> None:
        self.split = split
        levels = np.minimum(split.share * np.sort(_STEPS), 1.0)
        self._levels = np.unique(levels)
        self._held = np.zeros(len(self._levels) + 1)  # tokens between two levels
        self._short = self._long = 0
        self._smallest = _WHOLE

    def add(self, tokens: np.ndarray, hashes: np.ndarray) -> None:
        """Count whole documents, shape (documents,) each."""
        long = self.split.is_long(tokens)
        self._long += int(tokens[long].sum())
        tokens, hashes = tokens[~long], hashes[~long]
        if len(tokens):
            place = np.searchsorted(self._levels, hashes / _WHOLE, side="right")
            self._held += np.bincount(place, tokens, len(self._held))
            self._short += int(tokens.sum())
            self._smallest = min(self._smallest, int(hashes.min()))

    def threshold(self) -> int:
        """Below which hash a document is held out."""
        share, total = self.split.share, self._short + self._long
        if share >= 1:
            return _WHOLE
        held = dict(zip(self._levels, np.cumsum(self._held)[:-1], strict=True))
        best, best_miss = share, float("inf")
        for step in _STEPS:
            level = min(share * step, 1.0)
            miss = abs(float(held[level]) + share * self._long - share * total)
            if miss < best_miss:
                best, best_miss = level, miss
            if miss <= _TOLERANCE * share * total:
                break
        none = not held[best] and not self._long
        if none and share and total >= 20 * self.split.context:
            return self._smallest + 1
        return int(best * _WHOLE)
