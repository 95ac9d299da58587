"""MLflow and trackio: each line of metrics.jsonl once, however often the run was stopped.

Against the real libraries, which write to files here; they are no part of the lock.
"""

import importlib.util
import os
import signal
import sqlite3
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.training.forking import Strike, log_of, run_step
from tests.training.volume import make_config, make_volume, read_lines
from trainer.training.record.background import Background, Numbered

ENGINE = "trainer.training.engine.engine"
MEASURED_FLOATS = ("loss", "eval_loss", "learning_rate")


def needs(package: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(missing, reason=f"pip install 'finetune-pipeline[{package}]'")


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run that was killed, stopped and ended, with both trackers asked for."""
    root = tmp_path_factory.mktemp("tracked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlflow.db")
        patch.setenv("TRACKIO_DIR", str(root / "trackio"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        config = make_config(make_volume(root / "volume"), project_id="westerns")
        assert run_step("finetune", config, Strike(f"{ENGINE}:Engine.step", 7)) == -signal.SIGKILL
        strike = Strike(f"{ENGINE}:Engine.step", 3, signum=signal.SIGTERM)
        assert run_step("finetune", config, strike) == 143
        assert run_step("finetune", config) == 0, log_of(config)
    return config


def lines_of(config: dict[str, Any]) -> list[dict[str, Any]]:
    return read_lines(Path(config["volume"]) / "run" / "metrics.jsonl")


@needs("mlflow")
def test_mlflow_has_each_line_once(tracked: dict[str, Any]) -> None:
    database = sqlite3.connect(Path(tracked["volume"]).parent / "mlflow.db")
    lines = lines_of(tracked)
    found = database.execute("select value, step from metrics where key='line'").fetchall()
    assert sorted(found) == [(number, line["step"]) for number, line in enumerate(lines)]
    for name in MEASURED_FLOATS:
        rows = database.execute("select step, value from metrics where key=? order by step", [name])
        assert rows.fetchall() == [(line["step"], line[name]) for line in lines if name in line]
    [(status,)] = database.execute("select status from runs").fetchall()
    assert status == "FINISHED"
    parameters = dict(database.execute("select key, value from params").fetchall())
    assert parameters["epochs"] == "2"


@needs("trackio")
def test_trackio_has_each_line_once(tracked: dict[str, Any]) -> None:
    import json

    [path] = (Path(tracked["volume"]).parent / "trackio").glob("westerns*.db")
    rows = sqlite3.connect(path).execute("select step, metrics from metrics order by step")
    found = [(step, json.loads(metrics)) for step, metrics in rows.fetchall()]
    lines = lines_of(tracked)
    assert [step for step, _ in found] == list(range(len(lines)))
    for (_, values), line in zip(found, lines, strict=True):
        assert values["at_step"] == line["step"]
        assert {n: values[n] for n in MEASURED_FLOATS if n in line} == {
            n: line[n] for n in MEASURED_FLOATS if n in line
        }


class Kept:
    """A tracker that has some lines and takes others."""

    def __init__(self, there: int, broken: bool = False) -> None:
        self.there, self.broken = there, broken
        self.lines: list[Numbered] = []
        self.closed = threading.Event()

    def send(self, lines: list[Numbered]) -> None:
        if self.broken:
            raise ConnectionError("gone")
        self.lines += lines

    def close(self) -> None:
        self.closed.set()


def test_what_is_there_is_left_alone_and_what_is_missing_is_sent() -> None:
    kept = Kept(there=2)
    tracker = Background("Kept", lambda: kept, [{"step": 1}, {"step": 2}, {"step": 3}])
    tracker.add({"step": 4})
    tracker.close()
    assert kept.closed.is_set()
    assert kept.lines == [(2, {"step": 3}), (3, {"step": 4})]


def test_training_waits_for_no_tracker_and_is_told_of_one_that_breaks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.training.record.background.SEND_SECONDS", 0.05)
    held = threading.Event()

    def connect() -> Kept:
        held.wait()
        return Kept(there=0, broken=True)

    tracker = Background("Slow", connect, [])
    tracker.add({"step": 1})
    tracker.close()
    assert "Slow took 0 of 1 lines in time" in capsys.readouterr().out
    held.set()
    tracker._thread.join()
    assert "Slow takes no more metrics (gone)" in capsys.readouterr().out


def test_a_variable_without_its_package_is_said_and_does_not_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from trainer.training.record import trackers

    def unused(*given: Any) -> Any:
        raise AssertionError("not installed")

    asked: tuple[Any, ...] = (("Nowhere", "nowhere", ("NOWHERE_URI",), unused),)
    monkeypatch.setattr(trackers, "BY_ENVIRONMENT", asked)
    monkeypatch.setattr(trackers, "TensorBoard", lambda *given: None)
    monkeypatch.setenv("NOWHERE_URI", "somewhere")

    class Job:
        curves = tmp_path
        config: Mapping[str, Any] | Any = type("Config", (), {"wandb_key": ""})
        run = type("Run", (), {"metrics": tmp_path})

    assert len(trackers.trackers_of(Job(), 0)) == 1  # type: ignore[arg-type]
    said = capsys.readouterr().out
    assert "NOWHERE_URI is set, but the package nowhere is not installed" in said
    assert os.environ["NOWHERE_URI"] == "somewhere"
