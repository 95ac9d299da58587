"""The process of an inference server: start it, wait until it is ready, end it.

A process id is trusted only together with the time its process started, so a reused id is
never taken for ours.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

POLL_SECONDS = 0.05
LAST_LINES = 20
GRACE_SECONDS = 30.0  # between asking a server to stop and killing it


class ServiceError(Exception):
    """A server did not start or did not pass its check."""

    def __init__(self, message: str, *, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # of a server that ended by itself


def launch(config_file: Path, log: Path, python: str) -> tuple[subprocess.Popen[bytes], int]:
    """Start the server in a session of its own; return it and where its part of the log begins."""
    with open(log, "ab") as output:
        process = subprocess.Popen(
            [python, "-m", "trainer", "serve", str(config_file)],
            # Held by who tries it, closed by whatever kills that one: see trainer/serving/lease.py.
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={
                **os.environ,
                "PYTHONUNBUFFERED": "1",
                # An outcome of its own would overwrite what the step of the run has left.
                "FINETUNE_TERMINATION_PATH": str(config_file.with_name("outcome.json")),
            },
            start_new_session=True,
        )
        return process, output.tell()


def await_ready(
    process: subprocess.Popen[bytes],
    ready_file: Path,
    log: Path,
    begin: int,
    timeout_seconds: float,
) -> dict[str, Any]:
    deadline = time.monotonic() + timeout_seconds
    while True:
        # The file appears by a rename, so it is whole.
        with contextlib.suppress(FileNotFoundError):
            return json.loads(ready_file.read_text(encoding="utf-8"))
        exit_code = process.poll()
        if exit_code is not None:
            raise ServiceError(
                f"the server ended with exit code {exit_code} before it was ready. "
                f"Its last lines ({log}):\n{_last_lines(log, begin)}",
                exit_code=exit_code,
            )
        if time.monotonic() > deadline:
            raise ServiceError(
                f"the server was not ready within {timeout_seconds:g} seconds. "
                f"Its last lines ({log}):\n{_last_lines(log, begin)}"
            )
        time.sleep(POLL_SECONDS)


def end(pid: int, began: str | None, grace_seconds: float) -> None:
    """Ask the process to stop, then kill it; only while it is the one that was meant."""
    for signum, seconds in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, GRACE_SECONDS)):
        if not tell(pid, began, signum):
            return
        deadline = time.monotonic() + seconds
        while process_started(pid) == began and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)


def tell(pid: int, began: str | None, signum: int = signal.SIGTERM) -> bool:
    """Send the process a signal; whether it was there, and the one that was meant."""
    if began is None or process_started(pid) != began:
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signum)
    return True


def process_started(pid: int) -> str | None:
    """When the process began, as its kernel tells it; None where there is none or it ended.

    Source: proc(5), field 22 (starttime) of /proc/pid/stat; `ps` where there is no /proc.
    """
    if Path("/proc/self/stat").exists():
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return None
        fields = stat.rsplit(")", 1)[1].split()  # the name before may hold anything
        return None if fields[0] in "ZX" and _is_reaped(pid) else fields[19]
    listed = subprocess.run(
        ["ps", "-o", "state=,lstart=", "-p", str(pid)], capture_output=True, text=True
    )
    state, _, began = listed.stdout.strip().partition(" ")
    return began.strip() if state and not state.startswith("Z") else None


def _is_reaped(pid: int) -> bool:
    """Whether a zombie is gone for good; a child of ours stays one until it is waited for."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid  # 0: a thread of it has yet to end
    except ChildProcessError:
        return True


def _last_lines(log: Path, begin: int) -> str:
    with open(log, "rb") as file:
        file.seek(begin)
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    return "\n".join(lines[-LAST_LINES:])
