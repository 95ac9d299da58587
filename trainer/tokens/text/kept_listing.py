"""One listing of an object store for all steps of a run, kept on the volume.

Each of them needs the dataset's files, and a bucket of millions takes thousands of
requests to list. What is kept costs a listing where it is gone; what changed since is
found when it is read.
"""

import contextlib
import hashlib
import json
from pathlib import Path

from trainer.contract.files import write_atomically
from trainer.contract.json_text import parse_json
from trainer.contract.volume import is_url
from trainer.tokens.text.remote import recall
from trainer.tokens.text.sources import Source, SourceList, list_sources

FOLDER = "cache/tokens/listings"


def list_once(
    volume: str, dataset: str, listing: str, arrays: bool = False
) -> tuple[SourceList, bool]:
    """The dataset's files, and whether an earlier step had listed them under this name.

    Args:
        volume: Its root.
        dataset: As of list_sources; only an object store's listing is kept.
        listing: Who shares it; empty: nobody.
        arrays: As of list_sources.
    Raises:
        RequestError, StepError: As of list_sources.
    """
    if not (listing and is_url(dataset)) or "?" in dataset:  # a query string is kept nowhere
        return list_sources(volume, dataset, arrays), False
    if (sources := _kept(_path(volume, dataset), listing)) is None:
        return list_anew(volume, dataset, listing, arrays), False
    recall(dataset, sources)
    return sources, True


def list_anew(volume: str, dataset: str, listing: str, arrays: bool = False) -> SourceList:
    """List an object store, and keep that in place of what was kept."""
    sources = list_sources(volume, dataset, arrays)
    # Where the volume takes nothing, the next step lists again.
    with contextlib.suppress(OSError):
        write_atomically(
            _path(volume, dataset),
            json.dumps({"listing": listing, "sources": sources, "left_out": sources.left_out}),
        )
    return sources


def _kept(path: Path, listing: str) -> SourceList | None:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        kept = parse_json(path.read_text(encoding="utf-8"))
        if kept["listing"] == listing:
            sources = [Source(*values) for values in kept["sources"]]
            return SourceList(sources, kept["left_out"])
    return None


def _path(volume: str, dataset: str) -> Path:
    return Path(volume) / FOLDER / f"{hashlib.sha256(dataset.encode()).hexdigest()[:16]}.json"
