"""Files of the volume: written whole or not at all, linked, and counted."""

import contextlib
import hashlib
import os
import shutil
import stat
from pathlib import Path

_MADE = os.urandom(4).hex()


def writer_name() -> str:
    """A name for what this process writes beside its place.

    On a cluster processes of several pods write to one volume, each as process 1.
    """
    return f"{os.getpid()}-{_MADE}"


def write_atomically(path: Path, text: str) -> None:
    """Write `path` so that it is there whole or not at all, also after a crash."""
    make_way(path)
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


def short_digest(path: Path) -> str:
    """16 hex digits of the sha256 of a small file.

    Raises:
        FileNotFoundError: There is none.
    """
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def make_way(path: Path) -> None:
    """Rename a folder that has a file's name, and a file that has its folder's name."""
    if path.is_dir():
        set_aside(path)
    elif path.parent.is_file():
        set_aside(path.parent)


def set_aside(path: Path) -> Path:
    """Rename something damaged to a name that nothing reads; return where it is."""
    names = (path.with_name(f"{path.name}.damaged-{number}") for number in range(1, 10_000))
    return path.rename(next(aside for aside in names if not os.path.lexists(aside)))


def give_mode(path: Path) -> None:
    """Give a file the mode that any new file has: 0644 under the usual umask.

    Libraries make some files readable by their owner alone, such as safetensors its own. Other
    users of the volume could then read all of a run but its weights.
    """
    mode = 0o666 & ~_umask()
    if stat.S_IMODE(path.stat().st_mode) != mode:
        path.chmod(mode)


def _umask() -> int:
    """This process' mask; it can otherwise only be read by setting it, for all threads."""
    with contextlib.suppress(OSError, StopIteration):  # not on Linux
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return int(next(line for line in lines if line.startswith("Umask:")).split()[1], 8)
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def sync(path: Path) -> None:
    """Make the bytes of a file, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Have the file at `target` too: by a hard link, or a copy where the volume has none.

    Both names may be one file then. It is safe because a sealed file is never written to
    again, in checkpoints as in `final/`: what is damaged is replaced, not edited.

    Args:
        source: A file of a sealed folder.
        target: Must not exist.
    """
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # a volume without hard links
        shutil.copyfile(source, target)


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder; others may write, rename and delete there meanwhile."""
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                size += os.stat(os.path.join(place, name)).st_size
    return size
