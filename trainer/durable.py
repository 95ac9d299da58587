"""Files that are there whole or not at all, and survive a power cut."""

import os
from pathlib import Path

_MADE = os.urandom(4).hex()


def writer_name() -> str:
    """A name for what this process writes beside its place.

    On a cluster processes of several pods write to one volume, each as process 1.
    """
    return f"{os.getpid()}-{_MADE}"


def write_atomically(path: Path, text: str) -> None:
    """Write `path` so that it is there whole or not at all, also after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{writer_name()}")
    try:
        with open(beside, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError:  # a full volume: what fitted of it takes no room
        beside.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Make the bytes of a file, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
