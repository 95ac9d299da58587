"""What a step's folder holds while it is a process of this machine: lock, process id, work."""

import contextlib
import dataclasses
import fcntl
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from infra.backend import BusyError, PlaceError
from trainer.contract.json_text import parse_json


@dataclasses.dataclass(frozen=True)
class Work:
    """What work.json holds: the work a step's folder was last used for."""

    key: str
    log: str
    log_offset: int  # bytes in the log before this attempt


def read_work(folder: Path) -> Work | None:
    """The work that the folder was last used for."""
    found = read_json(folder / "work.json")
    with contextlib.suppress(TypeError):  # damaged: no step can be adopted by it
        return Work(**found) if found else None
    return None


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in the file; None where it is missing, damaged or not whole yet."""
    try:
        return parsed(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def parsed(text: str) -> dict[str, Any] | None:
    """The JSON object in the text; None where it holds anything else."""
    try:
        found = parse_json(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def clear(path: Path) -> None:
    """Delete a file, or a folder that has its name."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def read_pid(folder: Path) -> int:
    """The step's process id; its shell may need a moment to write it."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError):
            return int((folder / "pid").read_text())
        time.sleep(0.01)
    raise BusyError(f"{folder} is locked by a process that did not write its id.")


def try_lock(descriptor: int, patience_seconds: float = 0.0) -> bool:
    """Take the lock if it is free; `patience_seconds` outlasts somebody who only looks."""
    deadline = time.monotonic() + patience_seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.02)


def outlive(holder: int, descriptor: int) -> None:
    """Wait for the lock until `holder` ends, which follows the same attempt; end together.

    Prefect may start a flow run twice: its runner and its worker each report a crash, and what
    puts a crashed run back to work answers both. Who is interrupted here is the one that
    Prefect knows of, so the other is told.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except BaseException:  # a signal's exception, whichever Prefect or Python makes of it
        with contextlib.suppress(ProcessLookupError):
            os.kill(holder, signal.SIGTERM)
        raise


@contextlib.contextmanager
def writing(volume: Path) -> Iterator[None]:
    """Tell of a volume that takes no more as of a place that can't be used.

    Raises:
        PlaceError: Something in the block could not be written.
    """
    try:
        yield
    except OSError as error:
        raise PlaceError(
            f"pvc {volume.name!r} can't be written ({volume}: {error.strerror}). "
            "Free some space there, or make it writable."
        ) from error
