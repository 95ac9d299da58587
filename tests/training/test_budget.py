"""A run whose budget is over before its schedule ends with a finished model."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.training.forking import log_of, run_forked, run_step
from tests.training.volume import make_config, make_volume, read_lines
from trainer import __main__ as command
from trainer.contract.errors import RequestError
from trainer.contract.run_folder import RunFolder
from trainer.contract.sealed_folder import verify
from trainer.contract.step_configs import FinetuneConfig
from trainer.contract.topics import BudgetConfig
from trainer.training import verify_resume as rehearsal
from trainer.training.limits import budget
from trainer.training.limits.budget import end_by, last_step

HOUR = 3600.0
NOW = datetime(2026, 11, 24, tzinfo=UTC).timestamp()


def result_of(config: dict[str, Any]) -> dict[str, Any]:
    path = Path(config["volume"]) / "run/outcomes/finetune.json"
    return json.loads(path.read_text())["result"]


def test_it_ends_early_with_a_learning_rate_of_nothing_and_a_good_model(tmp_path: Path) -> None:
    config = make_config(make_volume(tmp_path), budget={"deadline": "2100-01-01"})
    path = tmp_path / "finetune.json"
    path.write_text(json.dumps(config))

    def with_time_for_seven_steps() -> int:
        budget.last_step = lambda done, end, *_, **__: 7 if done == 5 else end
        return command.main(["finetune", str(path)])

    code, log = run_forked(tmp_path, with_time_for_seven_steps)
    assert code == 0, log
    result, run = result_of(config), tmp_path / "run"
    assert (result["steps"], result["steps_planned"]) == (7, 12)
    assert "budget: there is time for 7 of 12 steps" in log
    lines = read_lines(run / "metrics.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 8))
    assert [line["step"] for line in lines if "eval_loss" in line] == [4, 7]
    rates = [line["learning_rate"] for line in lines if "loss" in line]
    assert rates[5:] == pytest.approx([rates[5], rates[5] / 2])
    assert rates[4] > rates[5] > rates[6]
    assert verify(run / "final") == []
    assert "| steps | 7 (of 12, by the budget)" in (run / "final/README.md").read_text()
    again, log = run_forked(tmp_path, lambda: rehearsal.main([str(tmp_path), "run"]))
    assert again == 0, log
    assert "resumes exactly: from step 4 to step 7" in log


def test_a_schedule_that_a_budget_ended_is_made_again_by_no_clock(tmp_path: Path) -> None:
    config = make_config(make_volume(tmp_path), budget={"deadline": "2100-01-01"})
    path = tmp_path / "finetune.json"
    path.write_text(json.dumps(config))
    ends = {3: 6, 5: 9, 6: 8}

    def ended_thrice() -> int:
        budget.last_step = lambda done, end, *_, **__: ends.get(done, end)
        return command.main(["finetune", str(path)])

    code, log = run_forked(tmp_path, ended_thrice)
    assert code == 0, log
    recorded = result_of(config)["budget_ends"]
    assert recorded == [[3, 6], [5, 9], [6, 8]]
    config = make_config(tmp_path, run_name="again", budget={"ends": recorded})
    assert run_step("finetune", config) == 0, log_of(config)
    first, again = (read_lines(tmp_path / run / "metrics.jsonl") for run in ("run", "again"))
    names = ("step", "loss", "eval_loss", "learning_rate")
    assert [[line.get(n) for n in names] for line in first] == [
        [line.get(n) for n in names] for line in again
    ]
    weights = [tmp_path / run / "final/model.safetensors" for run in ("run", "again")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    outcome = json.loads((tmp_path / "again/outcomes/finetune.json").read_text())
    assert outcome["result"]["budget_ends"] == recorded


def test_an_end_that_was_brought_forward_stays_there_after_a_kill(tmp_path: Path) -> None:
    config = make_config(make_volume(tmp_path), budget={"deadline": "2100-01-01"})
    path = tmp_path / "finetune.json"
    path.write_text(json.dumps(config))

    def ended(done: int, *_: Any, **__: Any) -> int:
        while done == 5:  # killed as soon as step 4 is sealed
            if (tmp_path / "run/checkpoints/step-00000004").exists():
                os._exit(9)
        return 7

    def killed_at_step_five() -> int:
        budget.last_step = ended
        return command.main(["finetune", str(path)])

    assert run_forked(tmp_path, killed_at_step_five)[0] == 9
    assert run_step("finetune", config) == 0, log_of(config)
    assert "resumes from step 4 of 7" in log_of(config)
    assert result_of(config)["steps"] == 7


def test_a_budget_that_is_over_already_gives_the_model_of_the_next_step(tmp_path: Path) -> None:
    config = make_config(make_volume(tmp_path), budget={"deadline": "2020-01-01"})
    assert run_step("finetune", config) == 0, log_of(config)
    assert (result_of(config)["steps"], result_of(config)["steps_planned"]) == (1, 12)


@pytest.mark.parametrize(
    ("end", "seconds_a_step", "last"),
    [
        (1000, 1.0, 1000),  # 900 of 1,000 seconds
        (1000, 2.0, 585),  # too slow: 485 steps take 970 seconds
        (600, 1.0, 1000),  # was shortened, and is faster by now: all of it
        (600, 1.9, 600),  # 950 of 1,000 seconds: leave it
        (600, 1.4, 792),  # faster, but not so much: 692 steps
    ],
)
def test_the_schedule_fills_the_time_that_is_left(
    end: int, seconds_a_step: float, last: int
) -> None:
    def remaining(e: int) -> float:
        return (e - 100) * seconds_a_step

    assert last_step(100, end, 1000, 1000.0, 100.0, remaining) == last


def test_a_pace_is_believed_when_it_was_measured_for_a_while() -> None:
    slow = (lambda e: 10.0 * (e - 1),)
    assert last_step(1, 1000, 1000, 1000.0, 10.0, *slow) == 1000
    assert last_step(1, 1000, 1000, 1000.0, 30.0, *slow) == 98


def test_hours_and_dollars_of_all_attempts_count(tmp_path: Path) -> None:
    run = RunFolder(tmp_path, "run")
    run.times.mkdir(parents=True)
    for began in (0.0, 10 * HOUR):  # two attempts of an hour, nine hours apart
        record = {"step": "finetune", "flow_began": 0.0, "asked": 0.0, "began": NOW + began}
        record |= {"seen": NOW + began + HOUR, "status": "stopped", "from_step": None, "saves": []}
        record["parts"] = {"compute": HOUR}
        path = run.times / f"{int(began)}-finetune.json"
        path.write_text(json.dumps(record))

    def left(dollars_per_hour: float | None = 2.0, **budget: Any) -> float:
        config = make_config(tmp_path, budget=BudgetConfig(**budget))
        after = {"steps": 9.0, "final model": 0.1, "evaluation": 0.4}
        plan = {"dollars_per_hour": dollars_per_hour, "hours_parts": after}
        return (end_by(FinetuneConfig(**{**config, "plan": plan}), run, NOW) - NOW) / HOUR

    assert left(max_hours=5) == pytest.approx(2.5)
    assert left(max_dollars=8) == pytest.approx(1.5)
    assert left(0.0, max_dollars=8, max_hours=5) == pytest.approx(2.5)  # this machine costs nothing
    with pytest.raises(RequestError, match=r"max_dollars can't be kept \(got 8.0\).*prices.yaml"):
        left(None, max_dollars=8)
    assert left(max_hours=5, deadline="2026-11-24T02:00") == pytest.approx(1.5)
    assert end_by(FinetuneConfig(**make_config(tmp_path)), run, NOW) == 0.0
