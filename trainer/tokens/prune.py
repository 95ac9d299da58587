"""What of old tokens may be deleted: stores that no run names, and cached pieces.

Kept are: stores that a run's records name, that the caller names, that were used within
a day or are being made, and the pieces that kept stores were made from.
"""

import shutil
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from trainer.errors import DamagedError
from trainer.tokens.lock import taken
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
    found = [*_stores(volume, keep, before)]
    gone = {item.path for item in found}
    found += [*_pieces(volume, gone, before), *_copies(volume, before)]
    if not dry_run:
        for item in found:
            _delete(item.path)
    return found


def _stores(volume: Path, keep: Collection[str], before: float) -> Iterator[Prunable]:
    needed = set(keep) | _named_by_runs(volume)
    for folder in sorted((volume / "tokens").glob("*")) + sorted((volume / "tokens").glob(".*")):
        name = folder.name.removeprefix(".").removesuffix(".old")
        if not folder.is_dir() or taken(volume / _CACHE / "locks" / name):
            continue
        if folder.name.startswith("."):
            yield Prunable(folder, _size(folder), "a store that was never finished")
        elif not (folder / MANIFEST).exists():
            yield Prunable(folder, _size(folder), "not a complete store")
        elif folder.name not in needed and folder.stat().st_mtime < before:
            yield Prunable(folder, _size(folder), "a store that no run names")


def _named_by_runs(volume: Path) -> set[str]:
    """Names of stores that stand in the records of any run, finished or not."""
    stores = {folder.name for folder in (volume / "tokens").glob("*")}
    named = set()
    for pattern in ("*/run.json", "*/outcomes/*.json"):
        for path in volume.glob(pattern):
            text = path.read_text(encoding="utf-8", errors="replace")
            named |= {name for name in stores if name in text}
    return named


def _pieces(volume: Path, gone: Collection[Path], before: float) -> Iterator[Prunable]:
    used = set()
    for folder in (volume / "tokens").glob("*"):
        if folder not in gone:
            try:
                manifest, _ = read_manifest(folder)
            except DamagedError:
                continue
            used |= {source["sha256"] for source in manifest.sources}
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


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _delete(path: Path) -> None:
    if path.is_dir():
        # The manifest first: what is left, should this be killed, is no store.
        (path / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
