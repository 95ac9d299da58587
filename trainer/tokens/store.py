"""A finished store of token contexts: open, verify, read.

    manifest.json   written last; a folder without it is no store. Ends in a digest of itself
    tokens.bin      (num_contexts, context) ids, little-endian uint16 or uint32
    lengths.bin     (num_contexts,) uint32: how many ids are text, the rest is padding
    begins.bin      (num_contexts,) uint64: where each context begins in the stream
    documents.bin   (parts,) records: where in the stream each part of a document begins

The stream is all training text, then all held-out text. Costs numpy alone.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trainer.errors import DamagedError

FORMAT = 2
MANIFEST = "manifest.json"
FILES = ("tokens.bin", "lengths.bin", "begins.bin", "documents.bin")

# `start`: position in the stream; `number`: of the document in its file, from 1.
DOCUMENT = np.dtype([("start", "<u8"), ("file", "<u4"), ("number", "<u4")])


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What manifest.json holds: see DESIGN section 6."""

    format: int
    key: str
    dtype: str
    context: int
    num_contexts: int
    num_train_contexts: int
    """These come first; the rest is held out."""
    num_tokens: int
    """Ids in contexts that are text, repeated ones counted each time."""
    num_padding: int
    eot_token_id: int
    pad_token_id: int
    boundary_token_id: int | None
    vocab_size: int
    tokenizer_digest: str
    added_tokens: list[dict[str, Any]]
    """Tokens beside the model's own vocabulary: id, content, special."""
    encoder: str
    options: dict[str, Any]
    totals: dict[str, int]
    """The ledger's sums: encoded + repeated = in_contexts + boundaries + sampled_out."""
    sources: list[dict[str, Any]]
    """The ledger of each file, in the order of the stream."""
    digests: dict[str, dict[str, Any]]
    """Per file of the store: `bytes` and `sha256`."""

    def to_json(self) -> str:
        """The text of manifest.json, the same for the same content on every machine."""
        fields = dict(vars(self))
        sources = fields.pop("sources")
        head = json.dumps(fields, indent=1)
        # One line a file: readable, and half the time of an indented one for 10,000 files.
        lines = ",\n  ".join(json.dumps(source) for source in sources)
        text = f'{head[:-2]},\n "sources": [\n  {lines}\n ],\n'
        return f'{text} "self_sha256": "{hashlib.sha256(text.encode()).hexdigest()}"\n}}\n'


class Span(NamedTuple):
    """A stretch of one document in a context: ids `begin` to `end` (exclusive)."""

    begin: int
    end: int
    path: str
    number: int


@dataclass(frozen=True)
class TokenStore:
    """A complete store; make one with `TokenStore.open`."""

    folder: Path
    manifest: Manifest
    digest: str
    """SHA-256 of manifest.json, which holds those of all other files: names the content."""

    @classmethod
    def open(cls, folder: str | Path, verify: bool = False) -> "TokenStore":
        """Open the store in `folder`.

        Args:
            folder: The store's folder.
            verify: Read every file and compare digests, not just sizes.
        Raises:
            DamagedError: It is not complete, or not what its manifest says.
        """
        folder = Path(folder)
        manifest, digest = read_manifest(folder)
        for name in FILES:
            check_file(folder / name, manifest.digests[name], verify)
        return cls(folder, manifest, digest)

    @cached_property
    def contexts(self) -> np.ndarray:
        """Token ids, shape (num_contexts, context), uint16 or uint32, read-only."""
        shape = (self.manifest.num_contexts, self.manifest.context)
        return self._mapped("tokens.bin", np.dtype(self.manifest.dtype)).reshape(shape)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Ids of each context that are text, shape (num_contexts,), uint32."""
        return self._mapped("lengths.bin", np.dtype("<u4"))

    @cached_property
    def begins(self) -> np.ndarray:
        """Where each context begins in the stream, shape (num_contexts,), uint64."""
        return self._mapped("begins.bin", np.dtype("<u8"))

    @cached_property
    def documents(self) -> np.ndarray:
        """Where each part of a document begins in the stream, records of DOCUMENT."""
        return self._mapped("documents.bin", DOCUMENT)

    def document_of(self, index: int) -> list[Span]:
        """Which documents of which files context `index` came from, in order."""
        if not 0 <= index < self.manifest.num_contexts:
            raise ValueError(
                f"context is not in the store (got {index}). "
                f"It has {self.manifest.num_contexts}. Take 0 to {self.manifest.num_contexts - 1}."
            )
        return list(self._spans(index))

    def _spans(self, index: int) -> Iterator[Span]:
        begin, length = int(self.begins[index]), int(self.lengths[index])
        documents = self.documents
        starts = documents["start"]
        at = int(np.searchsorted(starts, begin, side="right")) - 1
        position = begin
        while position < begin + length:
            last = at + 1 == len(documents)
            end = begin + length if last else min(int(starts[at + 1]), begin + length)
            path = self.manifest.sources[int(documents[at]["file"])]["path"]
            yield Span(position - begin, end - begin, path, int(documents[at]["number"]))
            position, at = end, at + 1

    def _mapped(self, name: str, dtype: np.dtype) -> np.ndarray:
        path = self.folder / name
        if not os.path.getsize(path):  # an empty file can't be mapped
            return np.empty(0, dtype)
        return np.memmap(path, dtype=dtype, mode="r")


def read_manifest(folder: Path) -> tuple[Manifest, str]:
    """The manifest of a store and its digest; raises DamagedError."""
    try:
        text = (folder / MANIFEST).read_bytes()
        fields = dict(json.loads(text))
        if fields.get("format") != FORMAT:
            raise ValueError(f"it is of another format ({fields.get('format')}, not {FORMAT})")
        before = text.rpartition(b' "self_sha256"')[0]
        if fields.pop("self_sha256", "") != hashlib.sha256(before).hexdigest():
            raise ValueError("it has other content than when it was written")
        manifest = Manifest(**fields)
    except OSError as error:
        raise DamagedError(f"{folder} is no complete token store: {error}.") from error
    except (TypeError, ValueError) as error:
        raise DamagedError(f"{folder / MANIFEST} can't be read: {error}.") from error
    return manifest, hashlib.sha256(text).hexdigest()


def check_file(path: Path, entry: dict[str, Any], verify: bool) -> None:
    """Raise DamagedError where `path` is not what its manifest's `entry` says."""
    try:
        size = os.path.getsize(path)
    except OSError as error:
        raise DamagedError(f"{path} is missing from its token store.") from error
    if size != entry["bytes"]:
        raise DamagedError(f"{path} has {size:,} bytes, not {entry['bytes']:,}.")
    if verify and file_digest(path) != entry["sha256"]:
        raise DamagedError(f"{path} has other content than when it was made.")


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
