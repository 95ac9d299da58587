"""One process at a time makes a thing on the volume; the others wait and use it."""

import contextlib
import errno
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path

from trainer.contract import events

_POLL_SECONDS = 0.2


@contextlib.contextmanager
def only_one(path: Path, waiting: str = "") -> Iterator[None]:
    """Hold the lock file at `path`; wait for its holder.

    The lock is the kernel's: it is gone with the process that held it, however it ended.

    Args:
        waiting: What to say where somebody holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        told = not waiting
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    events.notice(waiting)
                told = True
                # Polled, not waited for: a signal must end the wait at once.
                time.sleep(_POLL_SECONDS)
        yield


@contextlib.contextmanager
def if_free(path: Path) -> Iterator[bool]:
    """Hold the lock file at `path` unless another process does; yields whether it is held."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def taken(path: Path) -> bool:
    """Whether a living process holds the lock file at `path`."""
    try:
        try:
            file = open(path, "r+", encoding="utf-8")  # noqa: SIM115 - NFS locks no other
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES):
                raise
            file = open(path, encoding="utf-8")  # noqa: SIM115 - closed below
        with file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
