"""Which contexts of a store a run leaves out: those that hold any token of named documents.

Contexts overlap and span documents, so some tokens of other documents go with them. Held-out
contexts stay in validation: they were never trained on, and losses stay comparable.
Costs numpy alone, and a pass over the store's three small files.
"""

import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.contract.errors import RequestError
from trainer.contract.topics import SkipConfig
from trainer.tokens.store import DOCUMENT, TokenStore

_NAMED = 20  # documents that are named; all are counted
_EMPTY = np.empty(0, np.int64)


@dataclass(frozen=True)
class LeftOut:
    """The named documents, and the contexts of a store that hold them."""

    documents: list[tuple[int, int]]
    """Index of the file among the manifest's sources, number in it; ascending."""
    contexts: np.ndarray
    """Training contexts that are left out, ascending."""
    held_out: np.ndarray
    """Held-out contexts that hold the documents. They stay in validation."""
    figures: dict[str, Any]
    """For plans and outcomes, see `_figures`."""

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """The training contexts as stretches: first, and the one after the last."""
        return stretches(self.contexts)


def stretches(contexts: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Ascending contexts as stretches: first, and the one after the last."""
    if not len(contexts):
        return ()
    breaks = np.flatnonzero(np.diff(contexts) > 1)
    first = contexts[np.append(0, breaks + 1)]
    last = contexts[np.append(breaks, len(contexts) - 1)] + 1
    return tuple(zip(first.tolist(), last.tolist(), strict=True))


def left_out(
    store: TokenStore, skip: SkipConfig, volume: str | Path = "", dataset: str = ""
) -> LeftOut | None:
    """What `skip` leaves out of the store; None where it names nothing.

    Args:
        volume: Its root, and
        dataset: where the sources are; for digests alone.
    Raises:
        RequestError: A pattern or digest names no document of the store, or nothing is left.
    """
    if skip.is_empty:
        return None
    documents = sorted(
        {*_by_pattern(store, skip.documents), *_by_digest(store, skip.sha256, volume, dataset)}
    )
    found = of_documents(store, documents)
    if len(found.contexts) == store.manifest.num_train_contexts:
        raise RequestError(
            f"skip leaves nothing to train on (got {len(documents):,} documents). Each of the "
            f"{len(found.contexts):,} contexts holds some of their text. Name fewer, or take a "
            "smaller context."
        )
    return found


def of_documents(store: TokenStore, documents: list[tuple[int, int]]) -> LeftOut:
    """The contexts that hold any token of these documents."""
    parts, ends = _parts(store)
    named = _is_named(parts, documents) & (ends > parts["start"])
    begins = store.begins.astype(np.int64)
    stops = begins + store.lengths
    starts_named, ends_named = parts["start"][named].astype(np.int64), ends[named]
    # Parts are apart and in order: of those that begin before a context's end, some end after
    # its beginning.
    hit = np.searchsorted(starts_named, stops) > np.searchsorted(ends_named, begins, side="right")
    contexts, train = np.flatnonzero(hit), store.manifest.num_train_contexts
    trained, held_out = contexts[contexts < train], contexts[contexts >= train]
    figures = _figures(store, documents, trained, held_out, named)
    return LeftOut(documents, trained, held_out, figures)


def document_names(store: TokenStore, documents: list[tuple[int, int]]) -> Iterator[str]:
    """PATH#NUMBER of each, as skipped.jsonl has them."""
    for file, number in documents:
        yield f"{store.manifest.sources[file]['path']}#{number}"


def _parts(store: TokenStore) -> tuple[np.ndarray, np.ndarray]:
    """The parts of documents in the stream, and where each ends."""
    parts = store.documents
    if not len(parts):
        return np.empty(0, DOCUMENT), _EMPTY
    last = int((store.begins.astype(np.int64) + store.lengths).max(initial=0))
    ends = np.append(parts["start"][1:].astype(np.int64), max(last, int(parts["start"][-1]) + 1))
    return np.asarray(parts), ends


def _is_named(parts: np.ndarray, documents: list[tuple[int, int]]) -> np.ndarray:
    """Which parts are of the documents; shape (parts,), bool."""
    keys = parts["file"].astype(np.uint64) << np.uint64(32) | parts["number"]
    return np.isin(keys, np.array([f << 32 | n for f, n in documents], np.uint64))


# --- naming documents -------------------------------------------------------------------


def all_documents(store: TokenStore) -> list[tuple[int, int]]:
    """Every document that has a token in the store."""
    parts = store.documents
    keys = np.unique(parts["file"].astype(np.uint64) << np.uint64(32) | parts["number"])
    return [(int(key) >> 32, int(key) & 0xFFFFFFFF) for key in keys]


def _by_pattern(store: TokenStore, patterns: list[str]) -> Iterator[tuple[int, int]]:
    if not patterns:
        return
    documents, problems = all_documents(store), []
    for pattern in patterns:
        found = list(_matching(store, documents, pattern))
        if not found:
            problems.append(unknown_pattern(pattern, [s["path"] for s in store.manifest.sources]))
        yield from found
    if problems:
        raise RequestError(*problems)


def _matching(
    store: TokenStore, documents: list[tuple[int, int]], pattern: str
) -> Iterator[tuple[int, int]]:
    paths = [source["path"] for source in store.manifest.sources]
    whole = {i for i, path in enumerate(paths) if fnmatch.fnmatchcase(path, pattern)}
    head, _, number = pattern.rpartition("#")
    one = {i for i, path in enumerate(paths) if head and fnmatch.fnmatchcase(path, head)}
    for file, n in documents:
        if file in whole or (file in one and str(n) == number):
            yield file, n


def matches(pattern: str, paths: list[str]) -> bool:
    """Whether a pattern of `skip.documents` may name a document of one of these files."""
    head = pattern.rpartition("#")[0]
    return any(
        fnmatch.fnmatchcase(path, pattern) or (head and fnmatch.fnmatchcase(path, head))
        for path in paths
    )


def unknown_pattern(pattern: str, paths: list[str]) -> str:
    """The refusal of a pattern that names nothing."""
    some = ", ".join(paths[:3]) + (", ..." if len(paths) > 3 else "")
    return (
        f"skip.documents names no document (got {pattern!r}). Patterns are compared with the "
        f"paths of the dataset's files ({some}); PATH#N is document N of a file."
    )


def _by_digest(
    store: TokenStore, wanted: list[str], volume: str | Path, dataset: str
) -> Iterator[tuple[int, int]]:
    """Documents with one of these digests, and their copies under any name."""
    if not wanted:
        return
    from trainer.tokens.text.document_digests import document_digests

    digests, problems = document_digests(Path(volume), store, dataset), []
    chosen = np.zeros(len(digests), bool)
    for digest in wanted:
        of_this = rows_of_digest(store, digests, digest)
        chosen |= of_this
        if not of_this.any():
            problems.append(
                f"skip.sha256 names no document (got {digest!r}). It is the digest of the text "
                "of a document of the dataset, or of one of its files."
            )
    if problems:
        raise RequestError(*problems)
    yield from copies_of(store, digests, chosen)


def rows_of_digest(store: TokenStore, digests: np.ndarray, digest: str) -> np.ndarray:
    """Which rows of `document_digests` a digest names: of a text, or of a whole file."""
    from trainer.tokens.text.document_digests import rows_with

    of_files = [i for i, s in enumerate(store.manifest.sources) if s.get("sha256") == digest]
    found = np.isin(digests["file"], of_files)
    for column in ("text", "sanitized"):
        found |= rows_with(digests, {bytes.fromhex(digest)}, column)
    return found


def copies_of(
    store: TokenStore, digests: np.ndarray, chosen: np.ndarray
) -> Iterator[tuple[int, int]]:
    """The chosen rows as documents, and all others with the same sanitized text."""
    from trainer.tokens.text.document_digests import rows_with

    texts = {row.tobytes() for row in digests["sanitized"][chosen]}
    for row in digests[chosen | rows_with(digests, texts, "sanitized")]:
        yield int(row["file"]), int(row["number"])


# --- what it comes to -------------------------------------------------------------------


def _figures(
    store: TokenStore,
    documents: list[tuple[int, int]],
    contexts: np.ndarray,
    held_out: np.ndarray,
    named: np.ndarray,
) -> dict[str, Any]:
    """How much is left out in an epoch, and what of other documents goes with it."""
    own, others, other_parts = _shares(store, contexts, named)
    names = list(document_names(store, documents[:_NAMED]))
    return {
        "documents": len(documents),
        "names": names,
        "contexts": len(contexts),
        "tokens": store.trained_tokens(contexts),
        "tokens_of_documents": own,
        "tokens_of_others": others,
        "other_documents": other_parts,
        "held_out_contexts": len(held_out),
    }


def _shares(store: TokenStore, contexts: np.ndarray, named: np.ndarray) -> tuple[int, int, int]:
    """Ids of the contexts that are of the named documents, of others, and how many others."""
    parts, ends = _parts(store)
    if not len(contexts):
        return 0, 0, 0
    begins = store.begins[contexts].astype(np.int64)
    stops = begins + store.lengths[contexts]
    sizes = np.where(named, ends - parts["start"].astype(np.int64), 0)
    before = np.append(0, np.cumsum(sizes))

    def own_before(positions: np.ndarray) -> np.ndarray:
        at = np.searchsorted(parts["start"].astype(np.int64), positions, side="right") - 1
        inside = np.where(named[at], positions - parts["start"][at].astype(np.int64), 0)
        return before[at] + inside

    own = int((own_before(stops) - own_before(begins)).sum())
    starts = parts["start"].astype(np.int64)
    first = np.searchsorted(starts, begins, side="right") - 1
    last = np.searchsorted(starts, stops)  # one after the last
    touched = np.zeros(len(parts) + 1, np.int64)
    np.add.at(touched, first, 1)
    np.add.at(touched, last, -1)
    others = parts[(np.cumsum(touched[:-1]) > 0) & ~named]
    distinct = len(np.unique(others[["file", "number"]]))
    return own, int((stops - begins).sum()) - own, distinct
