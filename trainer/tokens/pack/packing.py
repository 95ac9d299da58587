"""From the stream of all documents to contexts: where each begins and ends.

`plan` holds the rules and looks at one window of the stream at a time; `Packer` moves
the window. Nothing here looks at a token twice: boundaries and the insides of
characters are found by numpy for the whole window, and a context costs about 1 us.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

_WINDOW_TOKENS = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How the stream is cut."""

    context: int
    boundary: int | None
    """Id of the token after which the next context begins; None: no such token."""
    boundary_index: int
    """-1: the last one in the context; else the one nearest to this position."""


@dataclass(frozen=True)
class Plan:
    """Contexts of one window: positions in it."""

    begins: list[int]
    ends: list[int]
    nexts: list[int]
    """Where the next context begins: before the end where text is repeated, one past the
    end where the boundary token is in neither."""


def plan(
    rules: Rules,
    boundaries: Sequence[int],
    inside: Sequence[int],
    begin: int,
    size: int,
    final: bool,
) -> Plan:
    """Cut one window of the stream into contexts.

    Args:
        rules: How.
        boundaries: Positions of the boundary token, ascending.
        inside: For each position whether its token begins inside a character.
        begin: Where the first context begins.
        size: Tokens in the window.
        final: The stream ends with the window; else it continues, and contexts that need to
            know how are left for the next window.
    """
    begins: list[int] = []
    ends: list[int] = []
    nexts: list[int] = []
    first = 0  # no boundary before it is asked for again
    while begin < size:
        end = begin + rules.context
        if end >= size:
            if not final:
                break
            end = after = size
        else:
            while end > begin and inside[end]:
                end -= 1
            if end == begin:  # a character longer than the context can't be kept whole
                end = begin + rules.context
            if rules.boundary is None:
                after = _without_boundary(rules.boundary_index, begin, end)
            else:
                # Candidates are past the context's first token, up to the one after its last.
                first = bisect_right(boundaries, begin, first)
                stop = bisect_right(boundaries, end, first)
                after = end
                if first < stop:
                    after = 1 + _chosen(boundaries, first, stop, begin, rules.boundary_index)
        begins.append(begin)
        ends.append(end)
        nexts.append(after)
        begin = after
    return Plan(begins, ends, nexts)


def _without_boundary(index: int, begin: int, end: int) -> int:
    if index < 0:
        return end
    return min(begin + max(index, 1), end)  # after 0 tokens would be the same context for ever


def _chosen(boundaries: Sequence[int], first: int, stop: int, begin: int, index: int) -> int:
    """Of the boundaries from number `first` to `stop` the one that decides."""
    if index < 0:
        return boundaries[stop - 1]
    wanted = begin + index
    at = bisect_left(boundaries, wanted, first, stop)
    if at == stop or (at > first and wanted - boundaries[at - 1] < boundaries[at] - wanted):
        at -= 1
    return boundaries[at]


class Sink(Protocol):
    """Who takes the contexts."""

    def take(
        self, window: np.ndarray, base: int, begins: np.ndarray, ends: np.ndarray, nexts: np.ndarray
    ) -> None:
        """Take contexts in order.

        Args:
            window: Ids of the stream from position `base` on.
            base: Position in the stream of the window's first id.
            begins, ends, nexts: Positions in the window, shape (contexts,), int64.
        """


class Packer:
    """Cuts one stream into contexts while it comes in."""

    def __init__(self, rules: Rules, begins_inside: np.ndarray, sink: Sink) -> None:
        self.rules = rules
        self.sink = sink
        self._inside = begins_inside
        self._pending: list[np.ndarray] = []
        self._num_pending = 0
        self._base = 0  # position in the stream of the first pending id
        self._skip = 0  # ids of the next window that are in no further context

    def feed(self, ids: np.ndarray) -> None:
        """Take the next ids of the stream."""
        self._pending.append(ids)
        self._num_pending += len(ids)
        if self._num_pending >= max(_WINDOW_TOKENS, 8 * self.rules.context):
            self._cut(final=False)

    def finish(self) -> None:
        """The stream ends here."""
        self._cut(final=True)

    def _cut(self, final: bool) -> None:
        if not self._num_pending:
            return
        window = np.concatenate(self._pending)
        boundaries: list[int] = []
        if self.rules.boundary is not None:
            boundaries = np.flatnonzero(window == self.rules.boundary).tolist()
        inside = self._inside[window].tobytes()  # looked up one by one
        done = plan(self.rules, boundaries, inside, self._skip, len(window), final)
        if done.begins:
            arrays = (np.array(p, np.int64) for p in (done.begins, done.ends, done.nexts))
            self.sink.take(window, self._base, *arrays)
        rest = done.nexts[-1] if done.nexts else self._skip
        # The next context may begin one past the window, after a boundary token.
        kept = min(rest, len(window))
        self._skip = rest - kept
        self._base += kept
        self._pending, self._num_pending = [window[kept:].copy()], len(window) - kept


def kept_by_sampling(first: int, count: int, sampling: int) -> np.ndarray:
    """Which of `count` contexts, numbered from `first`, are kept; shape (count,), bool."""
    index = np.arange(first, first + count, dtype=np.int64)
    return (index + 1) * sampling // 100 > index * sampling // 100


def first_kept(sampling: int) -> int:
    """Number of the first context that `sampling` keeps.

    The held-out stream is numbered from here on: of twenty contexts one is held out,
    however few are kept.
    """
    return -(-100 // sampling) - 1 if sampling else 0


def rows(
    window: np.ndarray, begins: np.ndarray, lengths: np.ndarray, context: int, pad: int
) -> np.ndarray:
    """The contexts' ids, padded, shape (len(begins), context)."""
    missing = max(0, int(begins[-1]) + context - len(window)) if len(begins) else 0
    if missing:
        window = np.concatenate([window, np.full(missing, pad, window.dtype)])
    out = np.lib.stride_tricks.sliding_window_view(window, context)[begins]
    for index in np.flatnonzero(lengths < context):
        out[index, lengths[index] :] = pad
    return out
