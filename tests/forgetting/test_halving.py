"""The few suspects that explain an effect are found by halving; nothing is measured twice."""

import random
from collections.abc import Sequence

import pytest

from trainer.blaming.halving import Group, Halving, OutOfBudgetError
from trainer.blaming.interval import bootstrap


class Effects:
    """Effects as they are when each of some causes, sets of suspects, is left out whole."""

    def __init__(self, causes: Sequence[set[int]], most: int = 100) -> None:
        self.causes, self.most = causes, most
        self.measured: dict[Group, float] = {}

    def __call__(self, groups: Sequence[Group]) -> list[float]:
        new = {*groups} - {*self.measured}
        if len(self.measured) + len(new) > self.most:
            raise OutOfBudgetError
        for group in new:
            gone = sum(cause <= group for cause in self.causes)
            self.measured[group] = gone / len(self.causes)
        return [self.measured[group] for group in groups]


@pytest.mark.parametrize("at_a_time", [1, 2, 4])
@pytest.mark.parametrize(
    ("causes", "most"),
    [([{0}], 4), ([{15}], 8), ([{9}], 7), ([{3}, {12}], 40), ([{3, 12}], 40), ([{1, 2, 14}], 60)],
    ids=["the first", "the last", "one", "two", "two that say the same", "three that do"],
)
def test_the_causes_are_found(causes: list[set[int]], most: int, at_a_time: int) -> None:
    effects = Effects(causes)
    halving = Halving(effects, 0.6, at_a_time)
    assert set(halving.search(range(16))) == set().union(*causes)
    assert not halving.is_cut
    if at_a_time == 1:
        assert len(effects.measured) <= most


def test_what_the_budget_allows_is_found_and_said_to_be_cut() -> None:
    halving = Halving(Effects([{15}], most=4), 0.6)
    assert halving.search(range(16)) == [12, 13, 14, 15]
    assert halving.is_cut
    assert Halving(Effects([{0}], most=4), 0.6, at_a_time=2).search(range(16)) == [0]


def test_random_causes_are_found() -> None:
    chance = random.Random(1)
    for _ in range(200):
        cause = set(chance.sample(range(16), chance.randint(1, 4)))
        assert set(Halving(Effects([cause]), 0.6).search(range(16))) == cause


def test_the_interval_holds_the_mean_and_is_the_same_for_the_same_seed() -> None:
    import numpy as np

    drawn = np.random.default_rng(5)
    tokens = drawn.integers(5, 20, 60)
    differences = tokens * drawn.normal(0.3, 0.1, 60)
    low, high = bootstrap(differences, tokens, 7) or (0.0, 0.0)
    assert low < differences.sum() / tokens.sum() < high
    assert 0.25 < low < high < 0.35
    assert bootstrap(differences, tokens, 7) == [low, high]
    assert bootstrap(differences[:4], tokens[:4], 7) is None
