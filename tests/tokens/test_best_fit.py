"""Best fit, held to a slow model of its rule."""

import numpy as np
import pytest

from trainer.tokens.packed.best_fit import best_fit


def slow_best_fit(lengths: list[int], context: int) -> list[list[int]]:
    """The longest first, each into the context with the least room that is enough."""
    contexts: list[list[int]] = []
    for at in sorted(range(len(lengths)), key=lambda at: (-lengths[at], at)):
        rooms = [context - sum(lengths[i] for i in held) for held in contexts]
        fitting = [room for room in rooms if room >= lengths[at]]
        if fitting:  # of several with that room the one that got it last
            full = [i for i, room in enumerate(rooms) if room == min(fitting)]
            chosen = max(full, key=lambda i: order.index(contexts[i][-1]))
            contexts[chosen].append(at)
        else:
            contexts.append([at])
        order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    return sorted((sorted(held) for held in contexts), key=lambda held: held[0])


@pytest.mark.parametrize("seed", range(20))
def test_it_is_the_slow_model(seed: int) -> None:
    random = np.random.default_rng(seed)
    context = int(random.integers(8, 40))
    lengths = random.integers(2, context + 1, int(random.integers(1, 60)))
    records = np.arange(100, 100 + len(lengths))
    every = np.zeros(200, np.int64)
    every[records] = lengths
    found = best_fit(records, every, context)
    edges = zip(found.first, found.first[1:], strict=False)
    assert [(found.members[a:b] - 100).tolist() for a, b in edges] == slow_best_fit(
        lengths.tolist(), context
    )
    assert found.sums(every).max() <= context


def test_nothing_makes_no_context() -> None:
    assert best_fit(np.empty(0, np.int64), np.empty(0, np.int64), 8).num_contexts == 0
