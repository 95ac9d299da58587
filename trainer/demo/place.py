"""Put the demo on a volume: whole or not at all, and never over a user's own files.

Each of the two folders is made beside its place and renamed into it, and holds a
hidden `.demo.json` that says whose it is: the seed, and the files with their sizes.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from trainer.contract.errors import RequestError
from trainer.contract.files import sync
from trainer.contract.json_text import parse_json
from trainer.demo.tales import dataset_files

DATASET = "dataset"
MODEL = "models/demo/gpt-j-tiny"
MARKER = ".demo.json"
FORMAT = 1  # one higher when the same seed makes other bytes


def place_dataset(volume: Path, seed: int) -> str:
    """Write the tales under `{volume}/dataset`, unless they are there.

    Returns:
        One sentence that says what was done.
    Raises:
        RequestError: There is a dataset that this did not make, or one of another seed.
    """

    def write(folder: Path) -> None:
        for name, text in dataset_files(seed):
            _write(folder / name, text)

    return _place(volume, DATASET, seed, write)


def place_model(volume: Path, seed: int) -> str:
    """Write the base model under `{volume}/models/demo`, unless it is there."""

    def write(folder: Path) -> None:
        # Loads torch, so only where there is something to make.
        from trainer.demo.base_model import save_base_model

        save_base_model(folder, (text for _, text in dataset_files(seed)), seed)

    return _place(volume, MODEL, seed, write)


def _place(volume: Path, name: str, seed: int, write: Callable[[Path], None]) -> str:
    folder = volume / name
    if folder.exists():
        missing = _missing(folder, name, seed)
        if not missing:
            return f"{name}: cached"
    else:
        missing = None
    beside = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        write(beside)
        made = _files(beside)
        if missing is None:
            _write(beside / MARKER, json.dumps({"format": FORMAT, "seed": seed, "files": made}))
            beside.rename(folder)
        else:
            _put_back(beside, folder, missing)
        sync(folder.parent)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    put_back = f", {len(missing)} of them put back" if missing else ""
    return f"{name}: {len(made)} files, {sum(made.values()) / 1e6:.1f} MB{put_back}"


def _missing(folder: Path, name: str, seed: int) -> list[str]:
    """Which of the demo's files are gone from `folder`; refuses a folder of someone else's."""
    try:
        marker = parse_json((folder / MARKER).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RequestError(
            f"--volume has a folder {name} that the demo did not make (got {folder}). "
            "The demo never writes over your files. Take another --volume."
        ) from None
    if (marker["format"], marker["seed"]) != (FORMAT, seed):
        raise RequestError(
            f"{name} holds another demo (got seed {marker['seed']}, format {marker['format']}). "
            f"Asked was seed {seed}, format {FORMAT}. Delete {folder} or take another --volume."
        )
    return [path for path in marker["files"] if not (folder / path).exists()]


def _put_back(beside: Path, folder: Path, missing: Iterable[str]) -> None:
    """Restore what was deleted; what a user changed or added stays as it is."""
    for path in missing:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (beside / path).rename(folder / path)


def _files(folder: Path) -> dict[str, int]:
    """Size in bytes of each file below `folder`, by its path there."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
