"""Several training processes on a node: start them, pass signals on, end them together.

The process that launches stays light: it loads no torch. Its children exit when it exits,
however it ends. Each is `python -m trainer.training.processes.launch FOLDER RANK WORLD LAUNCHER`.
With several nodes each node launches its own share; nodes.py says how they find each other.
"""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

from trainer.contract.errors import (
    EXIT_FAILED,
    EXIT_INCOMPLETE,
    EXIT_TERMINATED,
    DoesNotFitError,
    Interrupted,
    LostNodeError,
    RequestError,
    Signalled,
    StepError,
)
from trainer.contract.files import write_atomically
from trainer.contract.json_text import parse_json
from trainer.training.job import Job
from trainer.training.processes.nodes import STOPPED, Group

POLL_SECONDS = 0.05
# After one process has failed the others get this long to fail by themselves and say why.
LINGER_SECONDS = 3.0
_PR_SET_PDEATHSIG = 1  # of Linux' prctl
# That a process' error is raised as here.
_KINDS = (RequestError, Interrupted, DoesNotFitError, ImportError)


def train_in_processes(job: Job, processes: int, group: Group | None = None) -> dict[str, Any]:
    """Train in so many processes on this node; figures of the run's first process, or nothing.

    Args:
        group: The nodes that train together; None: this one alone.
    Raises:
        RequestError, Interrupted, StepError, ImportError: What ended the process that ended first.
        LostNodeError: Another node ended, or is gone.
    """
    world = processes * (group.nodes if group else 1)
    first = processes * (group.rank if group else 0)
    with tempfile.TemporaryDirectory(prefix="finetune-") as name:
        folder = Path(name)
        (folder / "job.json").write_text(job.to_json(), encoding="utf-8")
        started = [_start(folder, first + n, world, processes) for n in range(processes)]
        try:
            told = _wait(started, group, job.config.grace_seconds)
        finally:
            _end(started)
        codes = [p.returncode for p in started]
        if group is not None:
            _blame_others(group, folder, codes, bool(told))
        return _result(folder, codes, first, told)


def _start(folder: Path, rank: int, world: int, processes: int) -> subprocess.Popen[bytes]:
    threads = max(1, (os.cpu_count() or 1) // processes)
    words = (str(folder), str(rank), str(world), str(os.getpid()))
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "trainer.training.processes.launch", *words],
        env={
            "OMP_NUM_THREADS": str(threads),
            **os.environ,
            **how_to_meet(folder, rank, world, processes),
        },
        start_new_session=True,  # Ctrl-C reaches them once, through the launcher
    )


def how_to_meet(folder: Path, rank: int, world: int, processes: int) -> dict[str, str]:
    """Environment by which a process finds the others, those of this node or of all nodes."""
    local = {"LOCAL_RANK": str(rank % processes)}
    if world > processes:
        # The store is the first node's launcher's, as torchrun's agents have it.
        return {**local, "FINETUNE_RENDEZVOUS": "env://", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    return {
        **local,
        "FINETUNE_RENDEZVOUS": f"file://{folder}/rendezvous",
        # gloo would otherwise ask what the host's own name resolves to.
        "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo"),
    }


def _wait(
    processes: list[subprocess.Popen[bytes]], group: Group | None, grace_seconds: float
) -> str:
    """Return when all have ended, or one has failed; pass signals on meanwhile.

    Returns:
        The first signal that came here; empty: none did.
    """
    interrupts, told = 0, ""

    def pass_on(signum: int, frame: FrameType | None) -> None:
        nonlocal interrupts, told
        told = told or signal.Signals(signum).name
        interrupts += signum == signal.SIGINT
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL if interrupts > 1 else signal.SIGTERM)

    before = {s: signal.signal(s, pass_on) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        while any(p.poll() is None for p in processes):
            if any(p.poll() not in (None, 0, EXIT_TERMINATED) for p in processes):
                _linger(processes, LINGER_SECONDS)
                break
            if any(p.poll() == EXIT_TERMINATED for p in processes):
                # Its peers are stopping too, and may be saving; but one that is still meeting
                # the others waits, where no signal reaches it, for the one that is gone.
                _linger(processes, grace_seconds)
                break
            if group is not None and group.broken:
                # Where another node was stopped, these are stopping too, and may be saving.
                _linger(processes, grace_seconds if group.stopped else LINGER_SECONDS)
                break
            time.sleep(POLL_SECONDS)
        return told
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _blame_others(group: Group, folder: Path, exit_codes: list[int], was_told: bool) -> None:
    """Raise LostNodeError where what ended the processes was another node's end."""
    if all(code in (0, EXIT_TERMINATED) for code in exit_codes):
        if any(exit_codes) and not was_told:
            raise LostNodeError(f"{STOPPED} with another node; everything up to here is saved")
        return
    group.check()
    said_why = any(folder.glob("error-*.json"))
    if not said_why and all(code >= 0 for code in exit_codes):
        # A lost connection looks like any other exception: the others may know more.
        group.settle()


def _linger(processes: list[subprocess.Popen[bytes]], seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and any(p.poll() is None for p in processes):
        time.sleep(POLL_SECONDS)


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.kill()
    for process in processes:
        process.wait()


def _result(folder: Path, exit_codes: list[int], first: int, told: str) -> dict[str, Any]:
    """The first process' figures, or an error made of what the processes left behind.

    Args:
        told: The signal that came here and was passed on; empty: none did.
    """
    if not any(exit_codes):
        return parse_json((folder / f"result-{first}.json").read_text(encoding="utf-8"))
    errors = [
        parse_json(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("error-*.json"))
    ]
    for kind in (*_KINDS, StepError):
        for error in errors:
            if error["kind"] == kind.__name__:
                raise kind(error["message"])
    if told and {-signal.SIGTERM, -signal.SIGKILL} & {*exit_codes}:
        # In its imports a process has no handler yet; a second Ctrl-C kills it on purpose.
        raise Interrupted(f"stopped by {told} before it could save: it resumes from what is saved")
    failed = [(r, c) for r, c in enumerate(exit_codes) if c not in (0, EXIT_TERMINATED)]
    # Where one was killed, the others only lost their connection to it.
    rank, code = min(failed, key=lambda each: each[1] >= 0)
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    raise StepError(f"training process {rank} of {len(exit_codes)} ended with {how}")


def dies_with(launcher: int) -> bool:
    """Be killed when the launcher dies, even by kill -9; False where it is dead already."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The kernel tells only of deaths from here on.
    return os.getppid() == launcher


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise Signalled(f"stopped by {signal.Signals(signum).name}")


def _main(folder: Path, rank: int, world: int, launcher: int) -> int:
    """Be one training process; what it ends with is left in `folder`."""
    if not dies_with(launcher):
        return EXIT_FAILED  # a run that was started again may be training already
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        from trainer.training.process import train

        job = Job.from_json((folder / "job.json").read_text(encoding="utf-8"))
        figures = train(job, rank, world)
        write_atomically(folder / f"result-{rank}.json", json.dumps(figures))
        return 0
    except (StepError, Signalled, ImportError) as error:
        message = {"kind": _kind(error), "message": str(error)}
        write_atomically(folder / f"error-{rank}.json", json.dumps(message))
        if isinstance(error, ImportError):
            traceback.print_exc()
            return EXIT_INCOMPLETE
        return error.exit_code


def _kind(error: StepError | Signalled | ImportError) -> str:
    if isinstance(error, Signalled):
        return Interrupted.__name__
    return next((kind.__name__ for kind in _KINDS if isinstance(error, kind)), StepError.__name__)


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1]), *map(int, sys.argv[2:5])))
