"""The volume and the run's place on it: there, writable, with room, and not taken."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from trainer.contract.errors import RequestError
from trainer.contract.run_folder import STAYING, RunFolder
from trainer.contract.step_configs import FetchConfig
from trainer.contract.volume import is_url, path_on_volume

PROBE_BYTES = 64 * 1024
_FULL = {
    errno.ENOSPC: "is full",
    errno.EDQUOT: "is full (its quota is used up)",
    errno.EFBIG: "takes no file of that size",
}
_READ_ONLY = {
    errno.EROFS: "is mounted read-only",
    errno.EACCES: "is not writable",
    errno.EPERM: "is not writable",
}
OWN_FOLDERS = ("models", "tokens", "cache", "retrain", "sweeps")


@contextlib.contextmanager
def refusing_bad_volume(volume: Path) -> Iterator[None]:
    """Turn what a full or read-only disk answers into a RequestError that says so."""
    try:
        yield
    except OSError as error:
        what = (_FULL | _READ_ONLY).get(error.errno or 0)
        if what is None:
            raise
        mend = (
            "Free some space: `cache/` may be deleted at any time"
            if error.errno in _FULL
            else "Mount it with write access, or correct its owner"
        )
        raise RequestError(f"pvc {what} (got {volume}: {error.strerror}). {mend}.") from error


def check_volume(volume: Path, *, touch: bool = True) -> None:
    """Raise RequestError where the volume is missing, not writable or full.

    Args:
        volume: Its root.
        touch: Write a small file to find out, and delete it again.
    """
    if not volume.is_dir():
        raise RequestError(
            f"pvc is not there (got {volume}). A run needs a volume with its dataset. "
            "Create the folder, or correct pvc or --home."
        )
    if touch:
        with refusing_bad_volume(volume):
            _write_and_delete(volume / "cache" / f".probe.{os.getpid()}")


def _write_and_delete(probe: Path) -> None:
    probe.parent.mkdir(exist_ok=True)
    try:
        with open(probe, "wb") as file:
            file.write(bytes(PROBE_BYTES))
            file.flush()
            # Network file systems report a full disk only when the bytes are sent.
            os.fsync(file.fileno())
    finally:
        probe.unlink(missing_ok=True)


def check_run_name(config: FetchConfig) -> None:
    """Raise RequestError where the run's folder would be one of another purpose."""
    if not config.run_name:
        return
    path_on_volume(config.volume, "run_name", config.run_name)
    taken = dict.fromkeys(OWN_FOLDERS, "holds what this program keeps there")
    taken[_first_folder(config.logs)] = "is the folder of logs"
    for name in ("model", "tokenizer", "prompt_file", "dataset"):
        path = getattr(config, name)
        if path and not is_url(path) and (Path(config.volume) / path).exists():
            taken[_first_folder(path)] = f"holds this run's {name}"
    if _holds_other_files(Path(config.volume) / config.run_name):
        taken.setdefault(config.run_name, "holds files that are no run's")
    if config.run_name in taken:
        raise RequestError(
            f"run_name is a folder of the volume that {taken[config.run_name]} "
            f"(got {config.run_name!r}). A run has a folder of its own. Take another run_name."
        )


def _first_folder(path: str) -> str:
    parts = [part for part in Path(path).parts if part != "."]
    return parts[0] if parts else ""


def _holds_other_files(folder: Path) -> bool:
    """Whether `folder` was made by someone else: a run's begins with run.json."""
    if not folder.is_dir() or os.path.lexists(folder / "run.json"):
        return folder.is_file()
    # Without it there is what a run left that was about to start over.
    return any(path.name not in STAYING for path in folder.iterdir())


def check_earlier_run(config: FetchConfig) -> None:
    """Raise RequestError where the name is taken by a run with other parameters."""
    if config.run_name and not config.no_resume:
        RunFolder(config.volume, config.run_name).refuse_other_request(config.request)
