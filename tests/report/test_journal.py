"""A step's journal: what is written while it goes, and by several processes in turn."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trainer.contract.run_folder import RunFolder
from trainer.report import journal

CHILD = """
import os, time
from trainer.report import journal
journal.go_on()
with journal.phase("compute"):
    time.sleep(0.2)
journal.current().saved(7)
"""


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunFolder]:
    run = RunFolder(tmp_path, "run")
    run.root.mkdir()
    run.record_path.write_text("{}")
    yield run
    written = journal.current()
    if written is not None:
        written.close()
    journal._current.clear()


def written(run: RunFolder) -> dict[str, Any]:
    (path,) = run.times.glob("*-finetune.json")
    return json.loads(path.read_text())


def test_parts_add_up_to_the_whole_from_the_process_start(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setattr(journal, "time", SimpleNamespace(time=lambda: now))
    begun = journal.begin(run, "finetune")
    with journal.phase("compute"), journal.phase("data wait"):
        now += 0.05
    begun.close("done")
    record = written(run)
    assert sum(record["parts"].values()) == pytest.approx(record["seen"] - record["began"])
    assert record["parts"]["data wait"] == pytest.approx(0.05, abs=1e-6)
    assert record["parts"]["compute"] == 0
    assert record["status"] == "done"


def test_a_process_that_is_killed_has_left_its_journal(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "HEARTBEAT_SECONDS", 0.01)
    journal.begin(run, "finetune", flow_began=1.0, asked=2.0)
    deadline = time.monotonic() + 240
    while not list(run.times.glob("*-finetune.json")):
        assert time.monotonic() < deadline, "nothing was written"
        time.sleep(0.01)
    record = written(run)
    assert (record["status"], record["flow_began"], record["asked"]) == ("running", 1.0, 2.0)


def test_a_pod_knows_when_its_node_had_it(run: RunFolder, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    assert journal.placed_at(str(config)) == journal.placed_at('{"volume": "/data"}') == 0
    (tmp_path / "..data").symlink_to("..2026_11_27")  # as the kubelet leaves it
    placed = journal.placed_at(str(config))
    assert placed == pytest.approx(time.time(), abs=60)
    journal.begin(run, "finetune", asked=placed - 9, placed=placed).close("done")
    assert written(run)["asked"] < written(run)["placed"] <= written(run)["began"]


def test_a_checkpoint_is_written_down_at_once(run: RunFolder) -> None:
    begun = journal.begin(run, "finetune")
    begun.went_on_from(20)
    assert written(run)["from_step"] == 20
    begun.saved(40)
    assert [save["step"] for save in written(run)["saves"]] == [40]


def test_a_process_goes_on_with_the_journal_of_its_parent(run: RunFolder) -> None:
    begun = journal.begin(run, "finetune")
    with journal.handed_over():
        child = [sys.executable, "-c", CHILD]
        subprocess.run(child, check=True, env={**os.environ, "PYTHONPATH": os.getcwd()})
    begun.close("done")
    record = written(run)
    assert record["parts"]["compute"] >= 0.2
    assert [save["step"] for save in record["saves"]] == [7]
    assert sum(record["parts"].values()) == pytest.approx(record["seen"] - record["began"])
    assert record["status"] == "done"


def test_a_run_that_was_not_admitted_gets_no_folder(tmp_path: Path) -> None:
    journal.begin(RunFolder(tmp_path, "refused"), "finetune").close("refused")
    journal._current.clear()
    assert not (tmp_path / "refused").exists()
