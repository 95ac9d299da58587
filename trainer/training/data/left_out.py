"""Contexts that a run leaves out of training, as its processes know them: stretches of indexes."""

from collections.abc import Sequence

import numpy as np


class LeftOutContexts:
    """Which contexts are left out; costs a search for each context that is asked for."""

    def __init__(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Take stretches (first, one after the last), ascending and apart."""
        self._firsts = np.array([first for first, _ in ranges], np.int64)
        self._stops = np.array([0, *(stop for _, stop in ranges)], np.int64)

    def kept(self, contexts: np.ndarray) -> np.ndarray:
        """Those of `contexts` that are trained on, in the same order."""
        if not len(self._firsts):
            return contexts
        before = np.searchsorted(self._firsts, contexts, side="right")
        return contexts[contexts >= self._stops[before]]
