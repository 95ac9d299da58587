"""Remove a run so that a process which is killed leaves it whole, or gone for every reader.

One rename is the point of no return: `{run}/` becomes `.{run}.removed.part`, which no reader
takes for a run. Then the logs go, what steps of this machine left, and the folder last. Each
later removal first ends those that were cut off.
"""

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from trainer.contract.checkpoints import remove
from trainer.contract.errors import RequestError
from trainer.contract.files import sync
from trainer.contract.json_files import readable_object
from trainer.contract.locks import if_free, taken
from trainer.contract.volume import path_on_volume
from trainer.retention.needed import IN_USE, STEPS_FOLDER

_SUFFIX = ".removed.part"
_RECORDS = ("run.json", ".run.json")  # they name the folder of logs, and go last
LOGS = "logs"  # as the parameter of that name has it


def folders_of(volume: Path, name: str) -> list[Path]:
    """All that there is of a run: its folder, logs and events, what its steps left here."""
    logs = _logs(volume, volume / name, name)
    return [path for path in (volume / name, logs, volume / STEPS_FOLDER / name) if path.exists()]


def remove_run(volume: Path, name: str) -> bool:
    """Remove a run with its logs and events; False where somebody is at it.

    Whether anybody needs it, the caller has asked (trainer/retention/needed.py).
    """
    finish_removals(volume)
    with _claimed(volume, name) as free:
        if not free:
            return False
        part = volume / f".{name}{_SUFFIX}"
        (volume / name).rename(part)
        sync(volume)
        _finish(volume, part)
    return True


def removals_cut_off(volume: Path) -> dict[str, Path]:
    """What is left of runs whose removal was cut off by a kill, by name."""
    return {_name_of(part): part for part in sorted(volume.glob(f".*{_SUFFIX}"))}


def finish_removals(volume: Path) -> None:
    """End the removals that were cut off."""
    for name, part in removals_cut_off(volume).items():
        with _claimed(volume, name) as free:
            if free and part.exists():
                _finish(volume, part)


def own_bytes(paths: Iterable[Path]) -> int:
    """Bytes that deleting the paths frees: a file that has a name elsewhere, too, frees nothing."""
    sizes: dict[tuple[int, int], tuple[int, int]] = {}
    names: dict[tuple[int, int], int] = {}
    for path in paths:
        for status in _files(path):
            inode = (status.st_dev, status.st_ino)
            sizes[inode] = (status.st_size, status.st_nlink)
            names[inode] = names.get(inode, 0) + 1
    return sum(size for inode, (size, links) in sizes.items() if names[inode] >= links)


def bytes_of(path: Path) -> int:
    """Bytes of the files in a folder, or of a file, each counted once however many names it has."""
    return sum({(s.st_dev, s.st_ino): s.st_size for s in _files(path)}.values())


def _files(path: Path) -> Iterator[os.stat_result]:
    if path.is_file() or path.is_symlink():
        yield path.lstat()
        return
    for place, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # others may delete there meanwhile
                yield os.lstat(os.path.join(place, name))


@contextlib.contextmanager
def _claimed(volume: Path, name: str) -> Iterator[bool]:
    """Hold what an orchestrator of the run holds on this machine; False where one does."""
    places = volume / STEPS_FOLDER / name
    with if_free(places / "lock") as free:
        yield free and not any(map(taken, places.glob("*/lock")))


def _finish(volume: Path, part: Path) -> None:
    name = _name_of(part)
    logs = _logs(volume, part, name)
    for path in sorted(part.iterdir()):
        if path.name not in _RECORDS:
            remove(path)
    if not (volume / name).exists():  # else a new run has the name by now, and these are its own
        for path in (logs, volume / STEPS_FOLDER / name, volume / IN_USE / name):
            remove(path)
    shutil.rmtree(part)


def _logs(volume: Path, folder: Path, name: str) -> Path:
    """Where the logs and events of the run in `folder` are."""
    record: dict[str, Any] = next(
        (found for r in _RECORDS if (found := readable_object(folder / r))), {}
    )
    config = record.get("config")
    logs = config.get("logs") if isinstance(config, dict) else None
    with contextlib.suppress(RequestError):  # a record that somebody else wrote
        return path_on_volume(volume, "logs", f"{logs or LOGS}/{name}")
    return volume / LOGS / name


def _name_of(part: Path) -> str:
    return part.name.removeprefix(".").removesuffix(_SUFFIX)
