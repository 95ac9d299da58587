"""What of old tokens may be deleted: stores that no run names, and cached pieces.

Kept are: stores that a run's records name, that the caller names, that were used within
a day or are being made, and the pieces that kept stores were made from.
"""

import contextlib
import shutil
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from trainer.contract.errors import DamagedError
from trainer.contract.files import size_of
from trainer.contract.json_files import read_bytes
from trainer.contract.locks import if_free, taken
from trainer.contract.run_folder import damaged_records
from trainer.tokens.store import MANIFEST, read_manifest

_CACHE = "cache/tokens"
USED_LATELY_SECONDS = 86_400.0


class Prunable(NamedTuple):
    """One thing that may be deleted."""

    path: Path
    size: int  # bytes
    reason: str


def prune(
    volume: str | Path,
    keep: Collection[str] = (),
    *,
    dry_run: bool = True,
    used_lately_seconds: float = USED_LATELY_SECONDS,
) -> list[Prunable]:
    """Delete old stores and cached pieces; a dry run only says what it would.

    Args:
        volume: The volume's root.
        keep: Stores to keep besides those that runs name: folder names under `tokens/`.
        dry_run: Delete nothing.
        used_lately_seconds: Stores and pieces used this short ago are kept: a run that is
            about to begin has no record yet.
    Returns:
        What was, or would be, deleted, with its size.
    """
    volume = Path(volume)
    before = time.time() - used_lately_seconds
    found = [
        item for item in _stores(volume, keep, before) if dry_run or _delete_store(item, before)
    ]
    gone = {item.path for item in found}
    rest = [*_pieces(volume, gone, before), *_copies(volume, before)]
    return found + [item for item in rest if dry_run or _delete_file(volume, item, before)]


def _stores(volume: Path, keep: Collection[str], before: float) -> Iterator[Prunable]:
    needed = set(keep) | _named_by_runs(volume)
    for folder in sorted((volume / "tokens").glob("*")):  # hidden ones, too
        if not folder.is_dir() or taken(_lock_of(folder)):
            continue
        if folder.name.startswith("."):
            yield Prunable(folder, size_of(folder), "a store that was never finished")
        elif not (folder / MANIFEST).exists():
            yield Prunable(folder, size_of(folder), "not a complete store")
        elif folder.name not in needed and folder.stat().st_mtime < before:
            yield Prunable(folder, size_of(folder), "a store that no run names")


def _lock_of(store: Path) -> Path:
    """What a step holds while it makes the store."""
    name = store.name.removeprefix(".").removesuffix(".old")
    return store.parents[1] / _CACHE / "locks" / name


def _making(volume: Path) -> bool:
    """Whether any step makes a store: it may be about to read pieces that none needed so far."""
    return any(map(taken, (volume / _CACHE / "locks").glob("*")))


def _named_by_runs(volume: Path) -> set[str]:
    """Names of stores that stand in the records of any run, finished or not."""
    stores = {folder.name for folder in (volume / "tokens").glob("*")}
    if damaged_records(volume):
        return stores
    named = set()
    for pattern in ("*/run.json", "*/outcomes/*.json"):
        for path in volume.glob(pattern):
            with contextlib.suppress(DamagedError):  # run.json names the store, too
                text = (read_bytes(path) or b"").decode(errors="replace")
                named |= {name for name in stores if name in text}
    return named


def _pieces(volume: Path, gone: Collection[Path], before: float) -> Iterator[Prunable]:
    if _making(volume):
        return
    used = set()
    for folder in (volume / "tokens").glob("*"):
        if folder not in gone:
            try:
                manifest, _ = read_manifest(folder)
            except DamagedError:
                continue
            used |= {source.get("sha256") for source in manifest.sources}
    for path in sorted((volume / _CACHE / "pieces").glob("*/*")):
        if path.is_file():  # written by a process that was killed
            if path.stat().st_mtime < before:
                yield Prunable(path, path.stat().st_size, "a piece that was never finished")
            continue
        for piece in sorted(path.iterdir()):
            status = piece.stat()
            if piece.name.split("-")[0] not in used and status.st_mtime < before:
                yield Prunable(piece, status.st_size, "a cached piece that no store needs")


def _copies(volume: Path, before: float) -> Iterator[Prunable]:
    """Bytes of remote files that a step kept and was killed before it was done with them."""
    for path in sorted((volume / _CACHE / "copies").glob("*/*")):
        status = path.stat()
        if status.st_mtime < before:
            yield Prunable(path, status.st_size, "a copy of a remote file")


def _delete_store(item: Prunable, before: float) -> bool:
    """Delete a store unless a step took it up since it was listed; returns whether it is gone."""
    with if_free(_lock_of(item.path)) as free:
        if not free or not item.path.exists():
            return False
        complete = (item.path / MANIFEST).exists()
        if complete and not item.path.name.startswith(".") and _used_since(item.path, before):
            return False
        # The manifest first: what is left, should this be killed, is no store.
        (item.path / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(item.path)
    return True


def _delete_file(volume: Path, item: Prunable, before: float) -> bool:
    """Delete a piece or a copy, unless it may be in use by now; returns whether it is gone."""
    if _making(volume) or _used_since(item.path, before):
        return False
    item.path.unlink(missing_ok=True)
    return True


def _used_since(path: Path, before: float) -> bool:
    return path.exists() and path.stat().st_mtime >= before
