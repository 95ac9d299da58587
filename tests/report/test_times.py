"""A run's time by what it was spent on: it adds up, and lost work is found."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from trainer.contract.outcome import Outcome
from trainer.contract.run_folder import RunFolder
from trainer.report.times import LOST, Span, add_up, kept, ledger


def attempt(from_step: int, status: str, parts: dict[str, float], *saves: Any) -> dict[str, Any]:
    """An attempt at training; each of `saves` is a step and the seconds computed until then."""
    kept_saves = [
        {"step": step, "at": 0.0, "parts": {"load": 10.0, "compute": computed}}
        for step, computed in saves
    ]
    return {"from_step": from_step, "status": status, "parts": parts, "saves": kept_saves}


SPENT = {"load": 10.0, "compute": 50.0, "data wait": 2.0}


def test_overlaps_count_once_and_gaps_are_named() -> None:
    steps = [
        Span(100, 110, {"fetch": 10.0}),
        Span(120, 220, {"load": 20.0, "compute": 80.0}),
        Span(300, 330, {"evaluation": 30.0}),
    ]
    queues, images = [Span(112, 117, {}), Span(112, 290, {})], [Span(117, 120, {})]
    flows = [Span(90, 110, {}), Span(90, 225, {}), Span(295, 331, {})]
    others = {"image": images, "queue": queues, "orchestration": flows}
    assert add_up(steps, others) == pytest.approx(
        {
            "orchestration": 10 + 2 + 5 + 1,
            "queue": 5 + 70,
            "image": 3,
            "fetch": 10,
            "load": 20,
            "compute": 80,
            "evaluation": 30,
            "stopped": 5,
        }
    )


def test_steps_that_overlap_share_the_time_there_is() -> None:
    steps = [Span(0, 10, {"load": 10.0}), Span(5, 15, {"load": 2.0, "compute": 8.0})]
    assert add_up(steps, {}) == pytest.approx({"load": 10 + 1, "compute": 4})


def step_record(**times: Any) -> str:
    known = {"step": "evaluate", "flow_began": 0.0, "from_step": None, "saves": []}
    seconds = times["seen"] - times["began"]
    return json.dumps({**known, "status": "done", "parts": {"evaluation": seconds}, **times})


def test_waiting_is_for_a_machine_until_the_pod_has_one_and_then_for_its_image(
    tmp_path: Path,
) -> None:
    run = RunFolder(tmp_path, "run")
    run.times.mkdir(parents=True)
    path = run.times / "1-evaluate.json"
    path.write_text(step_record(asked=100.0, placed=160.0, began=190.0, seen=200.0))
    assert ledger(run) == pytest.approx({"queue": 60, "image": 30, "evaluation": 10})
    path.write_text(step_record(asked=100.0, placed=0.0, began=190.0, seen=200.0))
    assert ledger(run) == pytest.approx({"queue": 90, "evaluation": 10})


def test_a_step_counts_that_began_in_the_second_in_which_the_one_before_ended(
    tmp_path: Path,
) -> None:
    run = RunFolder(tmp_path, "run")
    run.times.mkdir(parents=True)
    (run.times / "1-evaluate.json").write_text(step_record(asked=0.0, began=100.0, seen=110.7))
    run.record_path.write_text("{}")
    began = datetime.fromtimestamp(110.7, UTC).isoformat(timespec="milliseconds")
    run.record_outcome(Outcome(step="deploy", status="done", started=began, seconds=4.0))
    assert ledger(run) == pytest.approx({"evaluation": 10.7, "deploy": 4})


def test_nothing_recorded_is_no_time() -> None:
    assert add_up([], {}) == {}


def test_what_a_killed_attempt_did_after_its_last_checkpoint_is_lost() -> None:
    killed = attempt(0, "running", SPENT, (20, 20.0), (40, 30.0))
    again = attempt(40, "done", SPENT, (60, 20.0))
    assert kept([killed, again]) == [{"load": 10.0, "compute": 30.0, LOST: 22.0}, SPENT]


def test_going_further_back_loses_what_earlier_attempts_did() -> None:
    first = attempt(0, "interrupted", SPENT, (20, 20.0), (40, 50.0))
    second = attempt(40, "running", SPENT, (60, 20.0))
    third = attempt(20, "done", SPENT, (60, 20.0))
    assert kept([first, second, third]) == [
        {"load": 10.0, "compute": 20.0, LOST: 32.0},
        {"load": 10.0, LOST: 52.0},
        SPENT,
    ]


def test_an_attempt_that_saved_before_it_ended_loses_nothing() -> None:
    stopped = attempt(0, "interrupted", SPENT, (20, 50.0))
    assert kept([stopped, attempt(20, "running", SPENT)]) == [SPENT, SPENT]


def test_an_attempt_killed_before_its_first_checkpoint_loses_all_but_loading() -> None:
    killed = attempt(0, "running", SPENT)
    assert kept([killed, attempt(0, "done", SPENT)])[0] == {"load": 10.0, LOST: 52.0}
