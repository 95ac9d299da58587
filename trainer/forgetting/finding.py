"""Find the documents that are to be forgotten: by path, by digest, or by a sentence of theirs."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trainer.contract.errors import RequestError
from trainer.contract.topics import SkipConfig
from trainer.tokens.left_out import (
    copies_of,
    document_names,
    left_out,
    rows_of_digest,
)
from trainer.tokens.store import TokenStore
from trainer.tokens.text.document_digests import document_digests
from trainer.tokens.text.parts import plan_parts
from trainer.tokens.text.reading import read_texts
from trainer.tokens.text.sanitize import sanitize
from trainer.tokens.text.sources import list_sources


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What somebody asks to be forgotten."""

    documents: list[str] = field(default_factory=list)
    """Patterns, as in `skip.documents`."""
    sha256: list[str] = field(default_factory=list)
    containing: list[str] = field(default_factory=list)
    """Texts: every document that contains one is meant."""

    def to_record(self) -> dict[str, Any]:
        """For the certificate, which must not hold the text itself."""
        hidden = [
            {"sha256": hashlib.sha256(text.encode()).hexdigest(), "characters": len(text)}
            for text in self.containing
        ]
        return {"documents": self.documents, "sha256": self.sha256, "containing": hidden}


@dataclass(frozen=True, kw_only=True)
class Found:
    """The documents with all their copies."""

    documents: list[tuple[int, int]]
    digests: list[str]
    """Of their sanitized texts, each once: what `skip.sha256` of the new run names."""
    rows: list[dict[str, Any]]
    """For people and the certificate: name, sha256 of the text and of the sanitized text."""


def find(store: TokenStore, asked: Asked, volume: str, dataset: str) -> Found:
    """The documents that are meant, and those with the same text under other names.

    Raises:
        RequestError: One part of what was asked names nothing.
    """
    digests = document_digests(Path(volume), store, dataset)
    chosen = np.zeros(len(digests), bool)
    if asked.documents:
        named = left_out(store, SkipConfig(documents=asked.documents))
        assert named is not None
        chosen |= _rows_of(digests, named.documents)
    for digest in asked.sha256:
        chosen |= _or_refused(rows_of_digest(store, digests, digest), "--sha256", digest)
    for text in asked.containing:
        found = list(_containing(store, text, volume, dataset))
        chosen |= _or_refused(_rows_of(digests, found), "--containing", text[:60])
    documents = sorted(set(copies_of(store, digests, chosen)))
    rows = digests[_rows_of(digests, documents)]
    names = document_names(store, documents)
    listed = [
        {
            "document": name,
            "sha256": row["text"].tobytes().hex(),
            "sanitized_sha256": row["sanitized"].tobytes().hex(),
        }
        for name, row in zip(names, rows, strict=True)
    ]
    texts = sorted({row["sanitized_sha256"] for row in listed})
    return Found(documents=documents, digests=texts, rows=listed)


def _or_refused(rows: np.ndarray, option: str, value: str) -> np.ndarray:
    if not rows.any():
        raise RequestError(f"{option} names no document of the run's data (got {value!r}).")
    return rows


def _rows_of(digests: np.ndarray, documents: list[tuple[int, int]]) -> np.ndarray:
    keys = digests["file"].astype(np.uint64) << np.uint64(32) | digests["number"]
    return np.isin(keys, np.array([f << 32 | n for f, n in documents], np.uint64))


def _containing(
    store: TokenStore, text: str, volume: str, dataset: str
) -> Iterator[tuple[int, int]]:
    """Documents whose text, sanitized or not, has `text` in it."""
    wanted = {text.encode(), sanitize(text.encode())} - {b""}
    if not wanted:
        raise RequestError("--containing is empty. Give a sentence of the text.")
    longest = max(map(len, wanted))
    there = {source.path: source for source in list_sources(volume, dataset)}
    for index, known in enumerate(store.manifest.sources):
        field_name = store.manifest.options.get("text_field") or "text"
        number, held, seen = 0, [b"", b""], False
        for part in plan_parts(there[known["path"]], known["sha256"], field_name, True):
            for piece in read_texts(part):
                if piece is None:
                    continue
                if piece.first:
                    number, held, seen = number + 1, [b"", b""], False
                # As the file has it, and sanitized; of a long document the end of what was read.
                now = [piece.text, sanitize(piece.text)]
                held = [before + text for before, text in zip(held, now, strict=True)]
                if not seen and any(w in text for w in wanted for text in held):
                    seen = True
                    yield index, number
                held = [text[-longest:] for text in held]
