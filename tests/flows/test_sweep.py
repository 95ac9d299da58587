"""Sweeps: which trials there are, who continues, and one that is interrupted and started again."""

import json
import signal
import subprocess
import time
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from pydantic import ValidationError

from flows.cli.commands_owner import values_of
from flows.sweep import run_sweep
from flows.sweep_request import SweepParameters, asked_trials
from flows.trials import Range, Trial, going_on, make_trials, picture, rungs, table
from tests.flows.small_volume import PVC, finetune
from tests.flows.test_deployment import api
from tests.flows.test_pipeline import REQUEST
from trainer.contract.errors import RequestError, StepError
from trainer.contract.validation import load_parameters

RATES = Range(min=1e-5, max=1e-3, log=True)


def test_a_grid_has_every_combination() -> None:
    trials = make_trials({"learn_rate": RATES, "zero_stage": [0, 3]}, "grid", 0, seed=1)
    points = [(trial.values["learn_rate"], trial.values["zero_stage"]) for trial in trials]
    assert points == [(1e-5, 0), (1e-5, 3), (1e-4, 0), (1e-4, 3), (1e-3, 0), (1e-3, 3)]
    assert [trial.number for trial in trials] == [1, 2, 3, 4, 5, 6]


def test_a_range_between_integers_has_integers_alone_each_once() -> None:
    gradients = values_of("gradients=1..8")[1]
    drawn = make_trials({"gradients": Range(**gradients)}, "grid", 0, seed=1)
    assert [repr(trial.values["gradients"]) for trial in drawn] == ["1", "4", "8"]
    assert Range(min=1, max=2, steps=9).grid() == [1, 2]
    assert Range(min=1, max=64, log=True).grid() == [1, 8, 64]
    assert Range(min=1.0, max=2.0).grid() == [1.0, 1.5, 2.0]
    drawn = make_trials({"epochs": Range(min=1, max=3)}, "random", 40, seed=1)
    assert sorted(trial.values["epochs"] for trial in drawn) == [1, 2, 3]
    assert [trial.number for trial in drawn] == [1, 2, 3]


def test_random_trials_are_those_of_the_seed_and_within_the_range() -> None:
    over = {"learn_rate": RATES, "zero_stage": [0, 3]}
    drawn = make_trials(over, "random", 40, seed=1)
    assert drawn == make_trials(over, "random", 40, seed=1)
    assert drawn != make_trials(over, "random", 40, seed=2)
    assert all(1e-5 <= trial.values["learn_rate"] <= 1e-3 for trial in drawn)
    below = sum(trial.values["learn_rate"] < 1e-4 for trial in drawn)
    assert 8 < below < 32  # evenly in the logarithm, half of them


@pytest.mark.parametrize(
    ("epochs", "eta", "rounds"), [(4, 2, [1, 2, 4]), (9, 3, [1, 3, 9]), (1, 2, [1]), (8, 1, [8])]
)
def test_each_round_of_halving_is_longer(epochs: int, eta: int, rounds: list[int]) -> None:
    assert rungs(epochs, eta) == rounds


def trials_with(*losses: float | None) -> list[Trial]:
    return [
        Trial(number=i, values={"learn_rate": i * 1e-4, "kind": "ab"[i % 2]}, run=f"r-{i}", loss=x)
        for i, x in enumerate(losses, 1)
    ]


def test_the_best_go_on_and_failed_ones_never() -> None:
    assert [t.number for t in going_on(trials_with(3.0, 1.0, None, 2.0, 9.0), 2)] == [2, 4, 1]
    assert [t.number for t in going_on(trials_with(None, 5.0), 4)] == [2]


def test_the_table_begins_with_the_best_of_the_last_round() -> None:
    first, second, third = trials_with(1.0, 2.0, 1.5)
    rows = table([first, replace(second, epochs=2), replace(third, epochs=2)])
    assert [row["trial"] for row in rows] == [3, 2, 1]


def test_the_picture_has_an_axis_for_each_parameter_and_a_line_for_each_trial() -> None:
    svg = ElementTree.fromstring(picture(trials_with(3.0, 1.0, None, 2.0)))
    named = "{http://www.w3.org/2000/svg}"
    lines = svg.findall(f"{named}polyline")
    assert [line.findtext(f"{named}title") for line in lines] == [
        "r-1: 3.0000",
        "r-4: 2.0000",
        "r-2: 1.0000",
    ]
    losses = [float(line.attrib["points"].rpartition(",")[2]) for line in lines]
    assert losses == sorted(losses)  # from the top of the axis down
    assert {"learn_rate", "kind", "loss"} <= {text.text for text in svg.iter(f"{named}text")}
    assert picture([])


@pytest.mark.parametrize("wrong", [{"min": 2, "max": 1}, {"min": 0, "max": 1, "log": True}])
def test_a_range_that_is_none_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="min is not below max"):
        Range.model_validate(wrong)


def test_what_is_wrong_with_a_range_is_said_once() -> None:
    over = json.dumps({"learn_rate": {"min": 1e-3, "max": 1e-5}})
    with pytest.raises(RequestError) as refused:
        load_parameters(SweepParameters, {"run_name": "rates", "over": over})
    told = "over.learn_rate.range.min is not below max (got 0.001 to 1e-05)."
    assert str(refused.value) == told


def test_values_are_read_from_the_command_line() -> None:
    assert values_of("learn_rate=1e-5,1e-4") == ("learn_rate", [1e-5, 1e-4])
    assert values_of("x=1..2:log") == ("x", {"min": 1, "max": 2, "log": True})
    with pytest.raises(RequestError, match="--over"):
        values_of("learn_rate")


def test_a_key_of_a_topic_varies_over_what_the_topic_has() -> None:
    given = {**REQUEST, "run_name": "rates", "optimizer": {"beta2": 0.95}, "lora": {"rank": 4}}
    over = {"optimizer.weight_decay": [0.0, 0.1], "schedule.kind": ["cosine"]}
    _, requests = asked_trials(load_parameters(SweepParameters, {**given, "over": over}))
    topics = [(r["optimizer"], r["schedule"]["kind"], r["lora"]["rank"]) for r in requests.values()]
    assert [(o["weight_decay"], o["beta2"], *rest) for o, *rest in topics] == [
        (0.0, 0.95, "cosine", 4),
        (0.1, 0.95, "cosine", 4),
    ]
    for wrong, problem in [
        (
            {"optimizer.weight": [1]},
            "optimizer.weight is not a parameter. Did you mean optimizer.w",
        ),
        ({"optimizer.beta2": [1.5]}, r"optimizer.beta2 should be less than 1 \(got 1.5\)"),
    ]:
        with pytest.raises(RequestError, match=problem):
            asked_trials(load_parameters(SweepParameters, {**given, "over": wrong}))
    pairs = {**given, "data": {"shape": "preference"}, "over": {"preference.beta": [0.1]}}
    with pytest.raises(RequestError, match="over can't vary preference"):
        asked_trials(load_parameters(SweepParameters, pairs))
    halved = {**given, "over": over, "halving": 2, "schedule": {"max_steps": 5}}
    with pytest.raises(RequestError, match="max_steps can't be combined with halving"):
        asked_trials(load_parameters(SweepParameters, halved))


def asked(home: Path, environment: dict[str, str], *more: str) -> "subprocess.Popen[str]":
    given = {**REQUEST, "run_name": "rates", "epochs": 2}
    words = [word for item in given.items() for word in ("-p", "=".join(map(str, item)))]
    return finetune(home, environment, "sweep", *words, *more)


def test_a_trial_that_would_be_refused_stops_all_before_anything_starts(
    home: Path, environment: dict[str, str]
) -> None:
    nobody = {"PREFECT_API_URL": "http://127.0.0.1:9/api"}
    process = asked(home, environment | nobody, "--over", "learn_rate=1e-3,-1")
    _, err = process.communicate(timeout=1000)
    assert process.returncode == 78, err
    assert "learn_rate" in err
    assert not list((home / PVC).glob("rates-*"))


def test_a_sweep_whose_every_trial_fails_has_failed(home: Path) -> None:
    given = {**REQUEST, "run_name": "lost", "over": {"epochs": [1]}}
    said: list[str] = []
    nobody = {PREFECT_API_URL: "http://127.0.0.1:9/api"}
    with (
        temporary_settings(nobody),
        pytest.raises(StepError, match=r"no trial with a loss \(got 1 that failed: lost-1\)"),
    ):
        run_sweep(SweepParameters(**given), home, said.append)
    assert "does not answer" in "".join(said)


def test_what_a_trial_is_refused_for_is_told_as_if_it_were_the_sweeps_own(home: Path) -> None:
    request = {**REQUEST, "run_name": "no-model", "model": "models/none", "over": {"epochs": [1]}}
    with pytest.raises(RequestError) as refused:
        run_sweep(SweepParameters(**request), home, print)
    assert str(refused.value).startswith("model")


@pytest.mark.timeout(2400)
def test_one_that_is_interrupted_goes_on_and_the_best_is_trained_longest(
    home: Path, environment: dict[str, str], api_url: str
) -> None:
    options = ["--over", "learn_rate=1e-7,1e-3", "--halving", "2", "--parallel", "2"]
    process = asked(home, environment, *options)
    first = home / PVC / "rates-1-e1/evaluation.json"
    deadline = time.monotonic() + 1000
    while not first.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=1000)
    assert process.returncode == 75, err
    made = first.stat().st_mtime_ns

    process = asked(home, environment, *options)
    out, err = process.communicate(timeout=1000)
    assert process.returncode == 0, err
    assert first.stat().st_mtime_ns == made
    rows = json.loads((home / PVC / "sweeps/rates/result.json").read_text())
    assert [row["run"] for row in rows] == ["rates-2-e2", "rates-1-e1"]
    assert rows[0]["learn_rate"] == 1e-3
    assert rows[0]["loss"] < rows[1]["loss"]
    assert out.splitlines()[0].endswith("run=rates-2-e2")
    assert len(list((home / PVC / "tokens").glob("dataset-*"))) == 1
    # Only their losses are asked for.
    assert not list((home / PVC / "logs").glob("rates-*/serve.log"))
    assert "polyline" in (home / PVC / "sweeps/rates/result.svg").read_text()
    found = api(api_url, "artifacts/filter", artifacts={"key": {"like_": "rates-sweep%"}})
    assert {artifact["type"] for artifact in found} == {"table", "image"}


@pytest.mark.timeout(2400)
def test_one_that_is_killed_goes_on_and_none_of_its_steps_is_done_again(
    home: Path, environment: dict[str, str]
) -> None:
    options = ["-p", "run_name=killed", "-p", "epochs=10", "--over", "learn_rate=1e-4,1e-3"]
    process = asked(home, environment, *options, "--parallel", "2")
    runs = ("killed-1", "killed-2")
    deadline = time.monotonic() + 1000
    while not all((home / PVC / run / "metrics.jsonl").exists() for run in runs):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.communicate(timeout=1000)

    process = asked(home, environment, *options, "--parallel", "2")
    out, err = process.communicate(timeout=1000)
    assert process.returncode == 0, err
    assert [line.partition("run=")[2] for line in out.splitlines()] == ["killed-2", "killed-1"]
    for run in runs:
        assert "resumes from step" not in (home / PVC / "logs" / run / "finetune.log").read_text()
