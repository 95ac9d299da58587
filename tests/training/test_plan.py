"""The order of contexts, the steps they make, and the learning rate."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import get_linear_schedule_with_warmup

from trainer.training.data.order import Order
from trainer.training.plan import TrainingPlan


def plan(**changes: object) -> TrainingPlan:
    fields = {
        "num_contexts": 21,
        "global_batch": 4,
        "batch_size": 2,
        "epochs": 2,
        "seed": 42,
        "shuffle": True,
        "learn_rate": 5e-5,
        "warmup_ratio": 0.1,
    }
    return TrainingPlan(**{**fields, **changes})  # type: ignore[arg-type]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**32 - 1), st.integers(0, 5))
def test_every_epoch_has_every_context_once(contexts: int, seed: int, epoch: int) -> None:
    order = Order(contexts, seed).contexts(epoch, 0, contexts)
    assert sorted(order.tolist()) == list(range(contexts))


def test_any_part_of_the_order_is_the_same_alone() -> None:
    order = Order(1000, 7)
    whole = order.contexts(3, 0, 1000)
    assert order.contexts(3, 613, 700).tolist() == whole[613:700].tolist()


def test_epochs_and_seeds_have_their_own_order() -> None:
    orders = {tuple(Order(50, seed).contexts(e, 0, 50)) for seed in (1, 2) for e in (0, 1)}
    assert len(orders) == 4


def test_a_huge_data_set_is_shuffled_without_listing_it() -> None:
    places = Order(10**11, 1).contexts(0, 10**11 - 5, 10**11)
    assert len(set(places.tolist())) == 5 and places.max() < 10**11


def test_finding_the_place_costs_the_same_at_step_10_million(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    huge = plan(num_contexts=41 * 10**6, epochs=3)
    permuted: list[int] = []
    permute = Order._permute

    def counting(self: Order, x: np.ndarray, keys: np.ndarray) -> np.ndarray:
        permuted.append(len(x))
        return permute(self, x, keys)

    monkeypatch.setattr(Order, "_permute", counting)
    for step in (10, 10 * 10**6, huge.steps - 1):
        permuted.clear()
        assert len(huge.contexts_of(step)) == 4
        # Numbers up to the next power of four are permuted until they are contexts.
        assert sum(permuted) <= 4 * 20


def test_shuffled_neighbours_are_not_neighbours() -> None:
    order = Order(10_000, 42).contexts(0, 0, 10_000)
    assert abs(np.corrcoef(np.arange(10_000), order)[0, 1]) < 0.05
    assert (np.abs(np.diff(order)) == 1).mean() < 0.01


def test_without_shuffle_it_is_the_order_of_the_store() -> None:
    assert Order(9, 42, shuffle=False).contexts(1, 2, 6).tolist() == [2, 3, 4, 5]


def test_the_reference_s_published_run_has_2238_steps() -> None:
    contexts = int(49_734 * 0.9)
    assert plan(num_contexts=contexts, global_batch=20, batch_size=4, epochs=1).steps == 2238


def test_the_last_step_of_an_epoch_has_what_is_left() -> None:
    steps = [plan().contexts_of(step) for step in range(12)]
    assert [len(s) for s in steps] == [4, 4, 4, 4, 4, 1] * 2
    for epoch in (steps[:6], steps[6:]):
        assert sorted(np.concatenate(epoch).tolist()) == list(range(21))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_have_disjoint_parts_and_equally_many_batches(world: int) -> None:
    contexts = plan().contexts_of(0)
    shares = [plan().share(contexts, rank, world) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    found = np.concatenate([micro for share in shares for micro in share])
    assert sorted(found.tolist()) == sorted(contexts.tolist())


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.33, 1.0])
def test_the_learning_rate_is_that_of_transformers_trainer(ratio: float) -> None:
    ours = plan(warmup_ratio=ratio, learn_rate=0.01)
    adam = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    warmup = int(np.ceil(ours.steps * ratio))
    schedule = get_linear_schedule_with_warmup(adam, warmup, ours.steps)
    for step in range(ours.steps):
        assert ours.learning_rate(step) == pytest.approx(schedule.get_last_lr()[0])
        adam.step()
        schedule.step()
