"""One listing of an object store for all steps of a run, kept on the volume.

Each of them needs the dataset's files, and a bucket of millions takes thousands of
requests to list. What is kept costs a listing where it is gone; what changed since is
found when it is read.
"""

import contextlib
import hashlib
import json
from pathlib import Path

from trainer.durable import write_atomically
from trainer.tokens.sources import Source, list_sources, recall
from trainer.volume_paths import is_url

FOLDER = "cache/tokens/listings"


def list_once(volume: str, dataset: str, listing: str) -> tuple[list[Source], bool]:
    """The dataset's files, and whether an earlier step had listed them under this name.

    Args:
        volume: Its root.
        dataset: As of list_sources; only an object store's listing is kept.
        listing: Who shares it; empty: nobody.
    Raises:
        RequestError, StepError: As of list_sources.
    """
    if not (listing and is_url(dataset)):
        return list_sources(volume, dataset), False
    if (sources := _kept(_path(volume, dataset), listing)) is None:
        return list_anew(volume, dataset, listing), False
    recall(dataset, sources)
    return sources, True


def list_anew(volume: str, dataset: str, listing: str) -> list[Source]:
    """List an object store, and keep that in place of what was kept."""
    sources = list_sources(volume, dataset)
    # Where the volume takes nothing, the next step lists again.
    with contextlib.suppress(OSError):
        write_atomically(
            _path(volume, dataset), json.dumps({"listing": listing, "sources": sources})
        )
    return sources


def _kept(path: Path, listing: str) -> list[Source] | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["listing"] == listing:
            return [Source(*values) for values in kept["sources"]]
    return None


def _path(volume: str, dataset: str) -> Path:
    return Path(volume) / FOLDER / f"{hashlib.sha256(dataset.encode()).hexdigest()[:16]}.json"
