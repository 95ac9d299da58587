"""Find the few of many suspects that explain an effect, by leaving groups of them out.

Pure: what leaving a group out does is asked of `measure`. The suspects are halved as long as one
half explains the effect. Where neither does, causes are in both (two texts that say the same):
each half is then searched while the other one stays left out.
Source: Zeller, "Yesterday, my program worked. Today, it does not. Why?", ESEC/FSE 1999.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Group = frozenset[int]
Measure = Callable[[Sequence[Group]], Sequence[float]]
"""Effects of leaving out each of some groups, measured once each; raises OutOfBudgetError."""


class OutOfBudgetError(Exception):
    """No further group can be measured."""


@dataclass
class Halving:
    """One search."""

    measure: Measure
    enough: float
    """A group whose effect is as large explains the whole effect."""
    at_a_time: int = 1
    """Groups that are measured at the same time: halves of the first half, ahead of their turn."""
    is_cut: bool = False
    """Whether the budget ended the search: what it found may be halved further."""

    def search(self, suspects: Sequence[int]) -> list[int]:
        """The suspects that explain the effect, in their order: few, or the smallest group known.

        Args:
            suspects: The most likely first; together they explain it.
        """
        found = self._needed(list(suspects), frozenset())
        return [one for one in suspects if one in found]

    def _needed(self, suspects: list[int], left_out: Group) -> Group:
        """Those among `suspects` that it takes, where `left_out` are left out as well."""
        if len(suspects) == 1:
            return frozenset(suspects)
        first, second = suspects[: len(suspects) // 2], suspects[len(suspects) // 2 :]
        try:
            self._look_ahead(first, left_out)
            for half in (first, second):
                if self.measure([left_out | frozenset(half)])[0] >= self.enough:
                    return self._needed(half, left_out)
        except OutOfBudgetError:
            self.is_cut = True
            return frozenset(suspects)
        found = self._needed(first, left_out | frozenset(second))
        return found | self._needed(second, left_out | found)

    def _look_ahead(self, suspects: list[int], left_out: Group) -> None:
        """Measure this half together with what comes next if it explains the effect."""
        sizes = [len(suspects) >> n for n in range(self.at_a_time) if len(suspects) >> n]
        groups = [left_out | frozenset(suspects[:size]) for size in sizes]
        if len(groups) > 1:
            with contextlib.suppress(OutOfBudgetError):
                self.measure(groups)
