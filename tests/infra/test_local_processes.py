"""The local backend with real processes, real signals and a second orchestrator."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.backend import BusyError, StepSpec
from infra.local.processes import LocalBackend

STAND_IN = Path(__file__).with_name("stand_in_trainer.py")
PVC = "volume"


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / PVC).mkdir()
    yield tmp_path
    for line in starts(tmp_path):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(line), signal.SIGKILL)


@pytest.fixture
def backend(home: Path) -> LocalBackend:
    return backend_at(home)


def backend_at(home: Path) -> LocalBackend:
    interpreter = home / "interpreter"
    interpreter.write_text(f'#!/bin/sh\nexec {sys.executable} {STAND_IN} "$@"\n')
    interpreter.chmod(0o755)
    return LocalBackend(home, python=str(interpreter))


def spec(key: str = "k", **config: Any) -> StepSpec:
    return StepSpec(step="finetune", run_name="run", volume=PVC, config=config, key=key)


def starts(home: Path) -> list[str]:
    path = home / PVC / "starts"
    return path.read_text().split() if path.exists() else []


def wait_for_start(home: Path, count: int = 1) -> int:
    deadline = time.monotonic() + 240
    while len(starts(home)) < count:
        assert time.monotonic() < deadline, "the step did not start"
        time.sleep(0.01)
    return int(starts(home)[-1])


def follow(backend: LocalBackend, step: StepSpec) -> tuple[Any, list[str]]:
    lines: list[str] = []
    return backend.wait(step, lines.append), lines


def test_lines_come_in_order_each_once_and_the_outcome_with_them(
    backend: LocalBackend, home: Path
) -> None:
    step = spec(lines=[f"line {i}" for i in range(500)] + ["half\rdrawn\rover"])
    backend.submit(step)
    end, lines = follow(backend, step)
    assert lines == [f"line {i}" for i in range(500)] + ["over", "last line"]
    assert end.exit_code == 0
    assert end.outcome["status"] == "done"
    assert end.outcome["result"]["volume"] == str(home / PVC)
    assert (home / PVC / "logs/run/finetune.log").read_text().endswith("last line\n")


def test_the_same_work_is_adopted_and_other_work_refused(backend: LocalBackend, home: Path) -> None:
    step = spec(until="go")
    backend.submit(step)
    wait_for_start(home)
    other = backend_at(home)
    assert "already running" in other.submit(step)
    with pytest.raises(BusyError, match="finetune stop run"):
        other.submit(spec("another key", until="go"))
    (home / PVC / "go").touch()
    while other.running_steps(PVC, "run"):  # what it says before it is followed is no less told
        time.sleep(0.01)
    end, lines = follow(other, step)
    assert (end.exit_code, end.outcome["status"], lines) == (0, "done", ["last line"])
    assert len(starts(home)) == 1


def test_what_is_in_the_way_of_a_step_of_no_run_is_told_by_its_process(home: Path) -> None:
    ours, other = (
        StepSpec(step="tokenize", run_name="", volume=PVC, key=key, config={"until": "go"})
        for key in ("ours", "other")
    )
    backend_at(home).submit(ours)
    pid = wait_for_start(home)
    with pytest.raises(BusyError) as refused:
        backend_at(home).submit(other)
    assert str(refused.value) == (
        f"pvc {PVC!r} is in use: another command's tokenize step is running with other "
        f"parameters (not known) (process {pid}). Wait for it, or end it: kill {pid}"
    )


def test_a_step_outlives_an_orchestrator_killed_with_kill_9(home: Path) -> None:
    backend_at(home)
    orchestrator = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; from infra.backend import StepSpec\n"
            "from infra.local.processes import LocalBackend\n"
            f"backend = LocalBackend(Path({str(home)!r}), python={str(home / 'interpreter')!r})\n"
            f"spec = StepSpec(step='finetune', run_name='run', volume={PVC!r}, key='k',"
            " config={'until': 'go'})\n"
            "backend.submit(spec); backend.wait(spec, print)",
        ]
    )
    pid = wait_for_start(home)
    orchestrator.kill()
    orchestrator.wait()
    os.kill(pid, 0)
    again = backend_at(home)
    again.submit(spec(until="go"))
    threading.Timer(0.3, (home / PVC / "go").touch).start()
    end, _ = follow(again, spec(until="go"))
    assert end.outcome["status"] == "done"
    assert len(starts(home)) == 1


def test_a_killed_step_blocks_nobody_and_its_end_is_told(backend: LocalBackend, home: Path) -> None:
    step = spec(until="go")
    backend.submit(step)
    os.kill(wait_for_start(home), signal.SIGKILL)
    end, _ = follow(backend, step)
    assert (end.exit_code, end.outcome) == (-signal.SIGKILL, None)
    assert "SIGKILL" in end.reason
    backend.submit(spec("another key", until="starts"))
    end, _ = follow(backend, spec("another key", until="starts"))
    assert end.exit_code == 0
    assert len(starts(home)) == 2


def test_an_exit_without_an_outcome_is_told_by_its_code(backend: LocalBackend) -> None:
    step = spec(leaves_nothing=True, exit_code=9)
    backend.submit(step)
    end, _ = follow(backend, step)
    assert (end.exit_code, end.outcome, end.reason) == (9, None, "exit code 9")


def test_an_old_outcome_is_not_taken_for_the_new_attempts(backend: LocalBackend) -> None:
    backend.submit(spec())
    follow(backend, spec())
    backend.submit(spec(leaves_nothing=True, exit_code=1))
    end, _ = follow(backend, spec(leaves_nothing=True, exit_code=1))
    assert end.outcome is None


def test_cancel_lets_the_step_save_and_waits_until_it_is_gone(
    backend: LocalBackend, home: Path
) -> None:
    step = spec(until="never")
    backend.submit(step)
    pid = wait_for_start(home)
    backend.cancel(step)
    end, _ = follow(backend, step)
    assert (end.exit_code, end.outcome["status"]) == (143, "interrupted")
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_cancel_kills_what_does_not_stop_within_the_grace(
    backend: LocalBackend, home: Path
) -> None:
    step = spec(until="never", ignores_sigterm=True)
    backend.submit(step)
    wait_for_start(home)
    backend.cancel(step, grace_seconds=0.3)
    assert follow(backend, step)[0].exit_code == -signal.SIGKILL


def test_stop_finds_the_step_of_another_orchestrator(backend: LocalBackend, home: Path) -> None:
    backend.submit(spec(until="never"))
    wait_for_start(home)
    other = backend_at(home)
    assert other.running_steps(PVC, "run") == ["finetune"]
    assert other.stop(PVC, "run") == ["finetune"]
    assert other.stop(PVC, "run") == []
    assert other.running_steps(PVC, "run") == []


def test_a_second_orchestrator_of_a_run_is_refused_until_the_first_is_gone(home: Path) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import time; from pathlib import Path\n"
            "from infra.local.processes import LocalBackend\n"
            f"with LocalBackend(Path({str(home)!r})).claim({PVC!r}, 'run'):\n"
            "    print('held', flush=True); time.sleep(60)",
        ],
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
    backend = LocalBackend(home)
    refused = pytest.raises(BusyError, match=rf"'run' is being run by process {holder.pid}")
    with refused, backend.claim(PVC, "run"):
        pass
    with backend.claim(PVC, "another-run"):
        pass
    holder.kill()
    holder.wait()
    with backend.claim(PVC, "run"):
        pass


ORCHESTRATOR = """
import fcntl, sys, time
from pathlib import Path
from infra.local.processes import LocalBackend
flock = fcntl.flock
def telling(descriptor, how):
    if how == fcntl.LOCK_EX:
        print("waits", flush=True)
    return flock(descriptor, how)
fcntl.flock = telling
with LocalBackend(Path(sys.argv[1])).claim(sys.argv[2], "run", attempt="flow-run-1"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_same_flow_run_started_twice_has_one_orchestrator_after_the_other(home: Path) -> None:
    command = [sys.executable, "-c", ORCHESTRATOR, str(home), PVC]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True)]
    try:
        assert started[0].stdout and started[0].stdout.readline() == "held\n"
        started += [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in "12"]
        for waiting in started[1:]:  # refused, it would have ended
            assert waiting.stdout and waiting.stdout.readline() == "waits\n"
        # Prefect ends the one it knows of: it takes the one that is at work with it.
        started[2].send_signal(signal.SIGINT)
        assert started[2].wait() != 0
        assert started[0].wait() == -signal.SIGTERM
        assert started[1].stdout and started[1].stdout.readline() == "held\n"
    finally:
        for process in started:
            process.kill()
            process.wait()
