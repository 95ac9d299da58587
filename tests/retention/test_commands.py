"""`finetune rm`, `prune --runs` and `runs`: what a user sees of the room that runs take."""

import fcntl
import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from flows.cli.main import cli
from flows.cli.runs.overview import RunRow
from flows.cli.runs.table import runs_table
from infra.local.service_records import record_file
from tests.retention.small_runs import days_go_by, make_run, serve
from trainer.contract.adapters_record import Wanted, write
from trainer.contract.process_time import process_started
from trainer.contract.run_folder import run_names
from trainer.retraining.series import Series

PVC = "finetune-data"


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    (tmp_path / PVC).mkdir()
    return tmp_path / PVC


def asked(volume: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, [*arguments, "--home", str(volume.parent)])


def refused(volume: Path, name: str) -> str:
    """Why the run is not removed."""
    result = asked(volume, "rm", name, "--yes")
    assert (volume / name).is_dir()
    assert result.exception is not None
    return str(result.exception)


def test_rm_shows_what_goes_and_removes_it_with_its_logs(volume: Path) -> None:
    run = make_run(volume, "one")
    (volume / "one/served").mkdir()
    os.link(run.final / "model.safetensors", volume / "one/served/model.safetensors")
    make_run(volume, "two")
    days_go_by(volume, 2)
    result = asked(volume, "rm", "one")
    assert "there is no terminal to ask on" in str(result.exception)
    assert "80.5 kB  one/checkpoints/" in result.output
    assert run.root.is_dir()
    result = asked(volume, "rm", "one", "--yes")
    assert "one is removed: 9" in result.output, result.output
    assert run_names(volume) == ["two"]
    assert [path.name for path in (volume / "logs").iterdir()] == ["two"]
    assert not (volume / ".runs/one").exists()


@pytest.mark.parametrize("answer", ["y", "n"])
def test_rm_asks_on_a_terminal(volume: Path, answer: str) -> None:
    make_run(volume, "one")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "flows.cli", "rm", "one", "--home", str(volume.parent)]
    with subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, text=True) as asking:
        os.write(ours, f"{answer}\n".encode())
        assert asking.stdout is not None
        said = asking.stdout.read()
    os.close(ours)
    os.close(theirs)
    assert asking.returncode == 0
    assert "Remove one for good? [y/N]" in said
    assert (volume / "one").is_dir() == (answer == "n")


def test_rm_names_what_needs_a_run(volume: Path) -> None:
    base = make_run(volume, "base")
    make_run(volume, "on-top", model="base/final")
    make_run(volume, "a-fork", forked_from={"run": "base", "step": 5})
    make_run(volume, "certified", forgets={"run": "base", "step": 5})
    why = refused(volume, "base")
    assert "base: the certificate of certified is computed from base" in why
    assert "base: on-top was made from base/final" in why
    assert "base: a-fork was forked from step 5 of base" in why
    for name in ("on-top", "a-fork", "certified"):
        assert asked(volume, "rm", name, "--yes").exit_code == 0
    serve(base)
    assert "it serves" in refused(volume, "base")
    # A server of this machine that is dead serves no more.
    record = {"pid": os.getpid(), "process_started": process_started(os.getpid())}
    record_file(volume, "base").write_text(json.dumps(record))
    assert "it serves" in refused(volume, "base")
    record_file(volume, "base").write_text(json.dumps(record | {"process_started": "1"}))
    assert asked(volume, "rm", "base", "--yes").exit_code == 0


def test_a_run_whose_adapter_is_served_beside_another_stays(volume: Path) -> None:
    make_run(volume, "beside")
    host = make_run(volume, "host")
    wanted = {"beside": Wanted(model="beside/final", digest="0" * 64)}
    record = volume / ".runs/host/service/adapters-1.json"
    record.parent.mkdir(parents=True)
    write(record, wanted)
    serve(host)
    assert "the service of host answers as beside, too" in refused(volume, "beside")
    dead = {"pid": os.getpid(), "process_started": "1"}
    record_file(volume, "host").write_text(json.dumps(dead))
    assert asked(volume, "rm", "beside", "--yes").exit_code == 0


def test_rm_leaves_a_run_alone_that_somebody_works_on(volume: Path) -> None:
    run = make_run(volume, "one")
    lock = volume / ".runs/one/finetune/lock"
    lock.parent.mkdir(parents=True)
    with open(lock, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "it runs (finetune)" in refused(volume, "one")
    shutil.rmtree(run.final)
    assert "was written to within a day" in refused(volume, "one")
    days_go_by(volume, 2)
    other = volume / ".runs/other/fetch"
    other.mkdir(parents=True)
    (other / "config.json").write_text(json.dumps({"model": "one/final"}))
    with open(other / "lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert "the fetch step of other, which runs, uses it" in refused(volume, "one")
    (volume / "cache/in-use").mkdir(parents=True)
    (volume / "cache/in-use/one").touch()
    assert "a run that began within a week uses its model" in refused(volume, "one")
    days_go_by(volume, 8)
    assert asked(volume, "rm", "one", "--yes").exit_code == 0


def test_rm_ends_a_removal_that_was_cut_off(volume: Path) -> None:
    run = make_run(volume, "one")
    run.root.rename(volume / ".one.removed.part")
    assert "one is removed: that had begun before" in asked(volume, "rm", "one").output
    assert not (volume / ".one.removed.part").exists()


def test_prune_removes_runs_only_when_asked(volume: Path) -> None:
    series = Series(volume, "nightly")
    for night in range(5):
        make_run(volume, f"nightly-{night}")
        series.append({"decision": "kept", "fingerprint": {}, "run": f"nightly-{night}"})
    days_go_by(volume, 2)
    assert asked(volume, "prune", "--delete").output == "       0.0 MB  freed\n"
    assert len(run_names(volume)) == 5
    told = asked(volume, "prune", "--runs").output
    assert "nightly-0  (an older run of nightly)" in told
    assert len(run_names(volume)) == 5
    asked(volume, "prune", "--runs", "--delete")
    assert run_names(volume) == ["nightly-2", "nightly-3", "nightly-4"]
    asked(volume, "prune", "--runs", "--delete", "--keep-finals", "1")
    assert run_names(volume) == ["nightly-4"]


ROWS = [
    RunRow(
        name="a-very-long-name-of-a-run-for-a-label-40",
        state="stopped before evaluate",
        model="models/EleutherAI/gpt-neo-2.7B",
        dataset="stories/western",
        base_loss=3.1234,
        loss=2.5678,
        dollars=1234.5,
        created="2026-11-30T10:00:00+00:00",
        bytes=85_200_000_000,
    ),
    RunRow(name="b", state="done", created="2026-11-29T10:00:00+00:00", bytes=1),
]


@pytest.mark.parametrize("columns", [60, 80, 100, 120, 250])
def test_the_list_of_runs_fits_the_terminal(columns: int) -> None:
    lines = runs_table(ROWS, columns).splitlines()
    assert max(map(len, lines)) <= columns
    shown = "\n".join(lines)
    assert "85.2 GB" in shown and "2.5678" in shown
    assert ("models/EleutherAI/gpt-neo-2.7B" in shown) == (columns == 250)
    assert ("$1,234.50" in shown) == (columns > 100)
    assert runs_table(ROWS).splitlines()[1] == runs_table(ROWS, 250).splitlines()[1]


def test_runs_on_a_terminal_of_80_columns(volume: Path) -> None:
    make_run(volume, "a-very-long-name-of-a-run-for-a-label-40", model="models/org/long-name" * 3)
    ours, theirs = pty.openpty()
    environment = os.environ | {"COLUMNS": "80"}
    command = [sys.executable, "-m", "flows.cli", "runs", "--home", str(volume.parent)]
    subprocess.run(command, stdout=theirs, check=True, env=environment)
    os.close(theirs)
    lines = os.read(ours, 65536).decode().splitlines()
    os.close(ours)
    assert "kB" in lines[1]
    assert max(map(len, lines)) <= 80


def test_sizes_are_in_the_json_too(volume: Path) -> None:
    make_run(volume, "one")
    assert json.loads(asked(volume, "runs", "--json").output)[0]["bytes"] > 90_000
