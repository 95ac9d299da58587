"""The process of an inference server: start it, wait until it is ready, end it.

A process id is trusted only together with the time its process started, so a reused id is
never taken for ours.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.contract import warm
from trainer.contract.json_text import parse_json
from trainer.contract.process_time import process_started

POLL_SECONDS = 0.05
LAST_LINES = 20
GRACE_SECONDS = 30.0  # between asking a server to stop and killing it


class ServiceError(Exception):
    """A server did not start or did not pass its check."""

    def __init__(self, message: str, *, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # of a server that ended by itself


@contextlib.contextmanager
def launched(config_file: Path, log: Path, python: str) -> Iterator[tuple[warm.Process, int]]:
    """A server in a session of its own, and where its part of the log begins.

    It ends with the block, or with this process, unless a record names it by then
    (trainer/serving/deploy/lease.py): it reads its standard input, whose other end is held here.
    """
    theirs, held = os.pipe()
    with open(held, "wb"), open(log, "ab") as output:
        try:
            process = warm.start(
                "trainer",
                ["serve", str(config_file)],
                environment={
                    **os.environ,
                    "PYTHONUNBUFFERED": "1",
                    # An outcome of its own would overwrite what the step of the run has left.
                    "FINETUNE_TERMINATION_PATH": str(config_file.with_name("outcome.json")),
                },
                output=output.fileno(),
                stdin=theirs,
                python=python,
            )
        finally:
            os.close(theirs)
        yield process, output.tell()


def await_ready(
    process: warm.Process,
    ready_file: Path,
    log: Path,
    begin: int,
    timeout_seconds: float,
) -> dict[str, Any]:
    deadline = time.monotonic() + timeout_seconds
    while True:
        # The file appears by a rename, so it is whole.
        with contextlib.suppress(FileNotFoundError):
            return parse_json(ready_file.read_text(encoding="utf-8"))
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


def _last_lines(log: Path, begin: int) -> str:
    with open(log, "rb") as file:
        file.seek(begin)
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    return "\n".join(lines[-LAST_LINES:])
