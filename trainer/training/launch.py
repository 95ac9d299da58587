"""Several training processes on one node: start them, pass signals on, end them together.

The process that launches stays light: it loads no torch. Its children end with it, however
it ends. `python -m trainer.training.launch FOLDER RANK WORLD` is one of them.
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
from pathlib import Path
from types import FrameType
from typing import Any

from trainer.errors import EXIT_TERMINATED, Interrupted, RequestError, Signalled, StepError
from trainer.outcome import write_atomically
from trainer.training.job import Job

POLL_SECONDS = 0.05
# After one process has failed the others get this long to fail by themselves and say why.
LINGER_SECONDS = 3.0
_PR_SET_PDEATHSIG = 1  # of Linux' prctl


def train_in_processes(job: Job, world: int) -> dict[str, Any]:
    """Train in `world` processes; the first one's figures.

    Raises:
        RequestError, Interrupted, StepError: What ended the process that ended first.
    """
    with tempfile.TemporaryDirectory(prefix="finetune-") as name:
        folder = Path(name)
        (folder / "job.json").write_text(job.to_json(), encoding="utf-8")
        processes = [_start(folder, rank, world) for rank in range(world)]
        try:
            _wait(processes)
        finally:
            _end(processes)
        return _result(folder, [p.returncode for p in processes])


def _start(folder: Path, rank: int, world: int) -> subprocess.Popen[bytes]:
    threads = max(1, (os.cpu_count() or 1) // world)
    return subprocess.Popen(
        [sys.executable, "-m", "trainer.training.launch", str(folder), str(rank), str(world)],
        env={
            "OMP_NUM_THREADS": str(threads),
            # gloo would otherwise ask what the host's own name resolves to.
            "GLOO_SOCKET_IFNAME": "lo",
            **os.environ,
            "FINETUNE_RENDEZVOUS": f"file://{folder}/rendezvous",
        },
        start_new_session=True,  # Ctrl-C reaches them once, through the launcher
    )


def _wait(processes: list[subprocess.Popen[bytes]]) -> None:
    """Return when all have ended, or one has failed; pass signals on meanwhile."""
    interrupts = 0

    def pass_on(signum: int, frame: FrameType | None) -> None:
        nonlocal interrupts
        interrupts += signum == signal.SIGINT
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL if interrupts > 1 else signal.SIGTERM)

    before = {s: signal.signal(s, pass_on) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        while any(p.poll() is None for p in processes):
            if any(p.poll() not in (None, 0, EXIT_TERMINATED) for p in processes):
                _linger(processes)
                return
            time.sleep(POLL_SECONDS)
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _linger(processes: list[subprocess.Popen[bytes]]) -> None:
    until = time.monotonic() + LINGER_SECONDS
    while time.monotonic() < until and any(p.poll() is None for p in processes):
        time.sleep(POLL_SECONDS)


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.kill()
    for process in processes:
        process.wait()


def _result(folder: Path, exit_codes: list[int]) -> dict[str, Any]:
    """The first process' figures, or an error made of what the processes left behind."""
    if not any(exit_codes):
        return json.loads((folder / "result-0.json").read_text(encoding="utf-8"))
    errors = [
        json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("error-*.json"))
    ]
    for kind in (RequestError, Interrupted, StepError):
        for error in errors:
            if error["kind"] == kind.__name__:
                raise kind(error["message"])
    failed = [(r, c) for r, c in enumerate(exit_codes) if c not in (0, EXIT_TERMINATED)]
    # Where one was killed, the others only lost their connection to it.
    rank, code = min(failed, key=lambda each: each[1] >= 0)
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    raise StepError(f"training process {rank} of {len(exit_codes)} ended with {how}")


def _die_with_parent() -> None:
    """Be killed when the launcher dies, even by kill -9."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise Signalled(f"stopped by {signal.Signals(signum).name}")


def _main(folder: Path, rank: int, world: int) -> int:
    """Be one training process; what it ends with is left in `folder`."""
    _die_with_parent()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        from trainer.training.process import train

        job = Job.from_json((folder / "job.json").read_text(encoding="utf-8"))
        figures = train(job, rank, world)
        write_atomically(folder / f"result-{rank}.json", json.dumps(figures))
        return 0
    except (StepError, Signalled) as error:
        message = {"kind": _kind(error), "message": str(error)}
        write_atomically(folder / f"error-{rank}.json", json.dumps(message))
        return error.exit_code


def _kind(error: StepError | Signalled) -> str:
    if isinstance(error, Signalled):
        return Interrupted.__name__
    kinds = (RequestError, Interrupted)
    return next((kind.__name__ for kind in kinds if isinstance(error, kind)), StepError.__name__)


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
