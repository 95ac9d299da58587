"""Each curve of the learning rate is that of transformers, and a budget shortens each kind."""

import json
import math
import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_cosine_with_min_lr_schedule_with_warmup,
    get_linear_schedule_with_warmup,
    get_polynomial_decay_schedule_with_warmup,
    get_wsd_schedule,
)

from tests.training.forking import Strike, log_of, run_step
from tests.training.test_plan import plan
from tests.training.volume import make_config, make_volume, read_lines
from trainer.contract.errors import RequestError
from trainer.contract.parameters import Parameters
from trainer.contract.topics import ScheduleConfig
from trainer.contract.validation import load_parameters
from trainer.planning.setting_rules import schedule_problems

ENGINE = "trainer.training.engine.engine"
RATE = 3e-4
FLOOR = {"min_lr_rate": 0.1}
CURVES: list[tuple[dict[str, Any], Callable[..., Any]]] = [
    ({}, get_linear_schedule_with_warmup),
    (
        {"min_rate": 0.1},
        lambda adam, w, n: get_polynomial_decay_schedule_with_warmup(adam, w, n, lr_end=RATE / 10),
    ),
    ({"kind": "cosine"}, get_cosine_schedule_with_warmup),
    (
        {"kind": "cosine", "min_rate": 0.1},
        lambda adam, w, n: get_cosine_with_min_lr_schedule_with_warmup(adam, w, n, **FLOOR),
    ),
    ({"kind": "constant"}, lambda adam, w, n: get_constant_schedule_with_warmup(adam, w)),
    (
        {"kind": "wsd"},
        lambda adam, w, n: get_wsd_schedule(adam, w, math.ceil(0.2 * n), num_training_steps=n),
    ),
    (
        {"kind": "wsd", "decay_ratio": 0.5, "min_rate": 0.1},
        lambda adam, w, n: get_wsd_schedule(
            adam, w, math.ceil(0.5 * n), num_training_steps=n, min_lr_ratio=0.1
        ),
    ),
]


def rates_of(schedule: dict[str, Any], **changes: Any) -> list[float]:
    ours = plan(schedule=ScheduleConfig(**schedule), learn_rate=RATE, **changes)
    return [ours.learning_rate(step) for step in range(ours.steps)]


def rates_of_transformers(make: Callable[..., Any], warmup: int, steps: int) -> list[float]:
    adam = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=RATE)
    theirs, found = make(adam, warmup, steps), []
    for _ in range(steps):
        found.append(theirs.get_last_lr()[0])
        adam.step()
        theirs.step()
    return found


@pytest.mark.parametrize(("schedule", "make"), CURVES)
@pytest.mark.parametrize("warmup", [0, 7])
def test_every_rate_is_that_of_transformers(
    schedule: dict[str, Any], make: Callable[..., Any], warmup: int
) -> None:
    by_steps = rates_of({**schedule, "warmup_steps": warmup}, epochs=9, warmup_ratio=0.0)
    assert len(by_steps) == 54
    assert by_steps == pytest.approx(rates_of_transformers(make, warmup, 54), rel=1e-12, abs=1e-18)


@pytest.mark.parametrize(("schedule", "make"), CURVES)
def test_without_warmup_steps_the_ratio_says_how_many(
    schedule: dict[str, Any], make: Callable[..., Any]
) -> None:
    rates = rates_of(schedule, epochs=9, warmup_ratio=0.1)
    assert rates == pytest.approx(rates_of_transformers(make, 6, 54), rel=1e-12, abs=1e-18)


def test_the_rates_without_a_schedule_are_the_former_ones_bit_for_bit() -> None:
    def former(step: int, steps: int, warmup: int) -> float:
        if step < warmup:
            return RATE * step / max(1, warmup)
        return RATE * max(0, steps - step) / max(1, steps - warmup)

    assert rates_of({}, epochs=50) == [former(step, 300, 30) for step in range(300)]
    shortened = plan(epochs=50, learn_rate=RATE).shortened_to(200, begin=101)
    at = shortened.learning_rate(101)
    assert at == former(101, 300, 30)
    found = [shortened.learning_rate(step) for step in range(101, 200)]
    assert found == [at * max(0, 200 - step) / max(1, 200 - 101) for step in range(101, 200)]


def test_max_steps_ends_the_curve_there_and_brings_no_step_beyond_the_epochs() -> None:
    rates = rates_of({"kind": "cosine", "max_steps": 20}, epochs=9, warmup_ratio=0.0)
    theirs = rates_of_transformers(get_cosine_schedule_with_warmup, 0, 20)
    assert rates == pytest.approx(theirs, rel=1e-12)
    assert len(rates_of({"max_steps": 1000})) == 12


# --- a budget that ends the run early ---------------------------------------------------


def shortened(schedule: dict[str, Any], *ends: tuple[int, int]) -> list[float]:
    """Rates of a run of 100 steps that was given another end at some of them."""
    made = plan(
        num_contexts=400,
        epochs=1,
        learn_rate=RATE,
        warmup_ratio=0.1,
        schedule=ScheduleConfig(**schedule),
    )
    rates = []
    for done in range(100):
        made = made.shortened_to(dict(ends)[done], begin=done) if done in dict(ends) else made
        if done < made.steps:
            rates.append(made.learning_rate(done))
    return rates


@pytest.mark.parametrize("kind", ["linear", "cosine", "wsd"])
@pytest.mark.parametrize("least", [0.0, 0.1])
@pytest.mark.parametrize(
    "ends", [[(30, 50)], [(5, 50)], [(30, 50), (40, 45)], [(30, 40), (35, 90)]]
)
def test_a_shortened_rate_goes_on_from_where_it_is_and_reaches_its_floor(
    kind: str, least: float, ends: list[tuple[int, int]]
) -> None:
    rates, whole = shortened({"kind": kind, "min_rate": least}, *ends), rates_of_whole(kind, least)
    begin, last = ends[0][0], ends[-1][1]
    assert len(rates) == last
    assert rates[: begin + 1] == pytest.approx(whole[: begin + 1])
    after = rates[max(begin, 10) :]
    assert all(one >= other - 1e-15 for one, other in pairwise(after))
    assert least * RATE <= rates[-1] < (least + 0.12) * RATE


def rates_of_whole(kind: str, least: float) -> list[float]:
    return shortened({"kind": kind, "min_rate": least})


def test_a_shortened_cosine_is_the_rest_of_the_curve_in_less_time() -> None:
    rates, whole = shortened({"kind": "cosine"}, (30, 65)), shortened({"kind": "cosine"})
    assert rates[30:] == pytest.approx(whole[30::2])
    again = shortened({"kind": "cosine"}, (30, 65), (40, 65))
    assert again == pytest.approx(rates)


def test_wsd_stays_level_until_its_decay_and_has_all_of_it() -> None:
    rates = shortened({"kind": "wsd"}, (30, 50))
    assert rates[10:41] == [RATE] * 31
    decay = [RATE * 0.5 * (1 + math.cos(math.pi * step / 10)) for step in range(10)]
    assert rates[40:] == pytest.approx(decay)
    assert shortened({"kind": "wsd"}, (30, 35))[30:] == pytest.approx(decay[::2])


def test_a_constant_rate_just_ends() -> None:
    rates = shortened({"kind": "constant"}, (30, 50))
    assert len(rates) == 50 and rates[10:] == [RATE] * 40


# --- what is refused --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "problem"),
    [
        ({"kind": "sine"}, "schedule.kind"),
        ({"warmup_steps": -1}, "schedule.warmup_steps"),
        ({"decay_ratio": 1.5, "kind": "wsd"}, "schedule.decay_ratio"),
        ({"min_rate": -0.1}, "schedule.min_rate"),
        ({"max_steps": -5}, "schedule.max_steps"),
        ({"kind": "constant", "min_rate": 0.1}, "schedule.min_rate has no effect with kind="),
        ({"decay_ratio": 0.3}, "schedule.decay_ratio has no effect with kind='linear' (got 0.3)"),
        ({"max_steps": 5, "warmup_steps": 6}, "schedule.warmup_steps is more than max_steps"),
    ],
)
def test_a_schedule_that_can_not_be_is_refused_by_name(
    schedule: dict[str, Any], problem: str
) -> None:
    with pytest.raises(RequestError) as refused:
        load_parameters(Parameters, {"run_name": "run", "schedule": schedule})
    assert refused.value.problems[0].startswith(problem)


def test_a_schedule_without_room_in_the_runs_steps_is_refused() -> None:
    (problem,) = schedule_problems(50, 0.1, {"warmup_steps": 51})
    assert problem.startswith("schedule.warmup_steps is more than the run has (got 51 of 50 steps)")
    (problem,) = schedule_problems(50, 0.5, {"kind": "wsd", "decay_ratio": 0.6})
    assert problem.startswith("schedule.decay_ratio leaves no step between")
    assert not list(schedule_problems(50, 0.5, {"kind": "wsd", "decay_ratio": 0.5}))


# --- a whole run ------------------------------------------------------------------------


def test_a_run_ends_at_max_steps_on_its_curve_and_resumes_exactly(tmp_path: Path) -> None:
    schedule = {"kind": "wsd", "decay_ratio": 0.5, "warmup_steps": 2, "max_steps": 6}
    runs = []
    for name in ("whole", "broken"):
        volume = make_volume(tmp_path / name)
        config = make_config(volume, schedule=schedule)
        if name == "broken":
            saved = volume / "run/checkpoints/step-00000004"
            strike = Strike(f"{ENGINE}:Engine.step", 6, sealed=saved)
            assert run_step("finetune", config, strike) == -signal.SIGKILL
        assert run_step("finetune", config) == 0, log_of(config)
        runs.append((volume / "run", log_of(config)))
    lines = [[x for x in read_lines(run / "metrics.jsonl") if "loss" in x] for run, _ in runs]
    rates = rates_of_transformers(
        lambda adam, w, n: get_wsd_schedule(adam, w, 3, num_training_steps=n), 2, 6
    )
    assert [x["learning_rate"] / 0.01 * RATE for x in lines[0]] == pytest.approx(rates)
    assert [x["loss"] for x in lines[0]] == [x["loss"] for x in lines[1]]
    weights = [(run / "final/model.safetensors").read_bytes() for run, _ in runs]
    assert weights[0] == weights[1]
    assert "schedule.max_steps ends at step 6 of the 12 steps of 2 epoch(s)" in runs[0][1]
    assert "resumes from step 4 of 6" in runs[1][1]
    outcome = json.loads((runs[0][0] / "outcomes/finetune.json").read_text())
    assert outcome["result"]["steps"] == 6 and "steps_planned" not in outcome["result"]


def test_a_warmup_longer_than_the_run_is_refused_before_it_is_admitted(tmp_path: Path) -> None:
    config = make_config(make_volume(tmp_path), schedule={"warmup_steps": 13})
    assert run_step("finetune", config) == 78
    assert "schedule.warmup_steps is more than the run has (got 13 of 12 steps)" in log_of(config)
    assert not (tmp_path / "run").exists()
