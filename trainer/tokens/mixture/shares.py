"""Which contexts of each part a mixture takes, and how often: a function of counts and seed alone.

A share is one of the trained tokens of an epoch. The epoch has as many as the parts have together
(`replay` comes on top of them), so a part with less than its share is repeated, and of one with
more some contexts are left out, drawn from the seed.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from trainer.contract.errors import RequestError
from trainer.tokens.pack.build import drawn_order


class Wanted(NamedTuple):
    """A part of a mixture."""

    name: str
    """The folder or URL."""
    share: float
    """Of the trained tokens of an epoch, 0 to 1; those of all parts make 1."""
    is_replay: bool = False

    @property
    def key(self) -> str:
        """The parameter that names it."""
        return "data.replay" if self.is_replay else "data.weights"


def parts_of(
    dataset: str, weights: dict[str, float], replay: str, replay_share: float
) -> list[Wanted]:
    """The parts that a request names, `dataset` first and the replay last."""
    given = weights or {dataset: 1.0}
    whole = sum(given.values())
    names = [dataset, *(name for name in given if name != dataset)]
    parts = [Wanted(name, (1 - replay_share) * given[name] / whole) for name in names]
    return [*parts, Wanted(replay, replay_share, True)] if replay else parts


def epoch_tokens(parts: Sequence[Wanted], tokens: Sequence[float]) -> float:
    """Trained tokens of an epoch.

    Args:
        tokens: That each part has.
    """
    own = sum(count for part, count in zip(parts, tokens, strict=True) if not part.is_replay)
    return own / sum(part.share for part in parts if not part.is_replay)


def taken(tokens: np.ndarray, goal: float, seed: int) -> np.ndarray:
    """Indexes of the contexts of a part that an epoch takes, ascending within each repetition.

    Args:
        tokens: Trained ones of each of its contexts.
        goal: How many are wanted.
    Returns:
        As many as come nearest to the goal, each as often as any other, or once more.
    """
    times, rest = divmod(goal, int(tokens.sum()))
    order = drawn_order(len(tokens), seed)
    sums = np.append(0, np.cumsum(tokens[order]))
    more = order[: int(np.argmin(np.abs(sums - rest)))]
    return np.concatenate([np.tile(np.arange(len(tokens)), int(times)), np.sort(more)])


def all_taken(parts: Sequence[Wanted], tokens: Sequence[np.ndarray], seed: int) -> list[np.ndarray]:
    """The contexts that an epoch takes of each part.

    Args:
        tokens: Trained ones of each context to train on, by part.
    Raises:
        RequestError: A part has no text to train on, or its share is less than a context.
    """
    counts = [int(part.sum()) for part in tokens]
    empty = [part for part, count in zip(parts, counts, strict=True) if not count]
    if empty:
        raise RequestError(
            f"{empty[0].key} names {empty[0].name!r}, which leaves nothing to train on. Bring more "
            "text, or leave it out."
        )
    epoch = epoch_tokens(parts, counts)
    found = [
        taken(counted, part.share * epoch, seed + at)
        for at, (part, counted) in enumerate(zip(parts, tokens, strict=True))
    ]
    for part, contexts in zip(parts, found, strict=True):
        if not len(contexts):
            raise RequestError(
                f"{part.key} gives {part.name!r} less than half a context (got a share of "
                f"{part.share:.4g} of {epoch:,.0f} tokens). Raise its share, or leave it out."
            )
    return found


def interleaved(counts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """An order that spreads each part evenly, and keeps its own order.

    Returns:
        The part of each context, and its number among those of that part.
    """
    part = np.repeat(np.arange(len(counts)), counts)
    number = np.concatenate([np.arange(count) for count in counts])
    place = (number + 0.5) / np.asarray(counts)[part]
    order = np.argsort(place, kind="stable")
    return part[order], number[order]
