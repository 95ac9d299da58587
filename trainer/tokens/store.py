"""A finished store of token contexts: open, verify, read.

    manifest.json   written last; a folder without it is no store. Ends in a digest of itself
    tokens.bin      (num_contexts, context) ids, little-endian uint16 or uint32
    lengths.bin     (num_contexts,) uint32: how many ids are text, the rest is padding
    begins.bin      (num_contexts,) uint64: where each context begins in the stream
    documents.bin   (parts,) records: where in the stream each part of a document begins
    mask.bin        (num_contexts, ceil(context / 8)) bytes: of chats, completions and packed
                    documents a bit for each id, the lowest first, that says whether it is trained;
                    absent where all are

The stream is all training text, then all held-out text. Costs numpy alone.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from trainer.contract.errors import DamagedError
from trainer.contract.json_text import parse_json
from trainer.contract.sealed_folder import file_record

FORMAT = 2
FAST = "xxh3_128"  # as fast as memory; SHA-256 takes ten times as long
MANIFEST = "manifest.json"
FILES = ("tokens.bin", "lengths.bin", "begins.bin", "documents.bin")
MASK = "mask.bin"
SIDES = ("chosen", "rejected")
"""The two texts of a pair, in their order."""

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
    """Per file of the store: `bytes`, `sha256` and, since 2026-12, the fast `xxh3_128`."""
    left_out: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Of each kind of file that is not read: how many `files`, and the `names` of some."""
    chat: dict[str, Any] = field(default_factory=dict)
    """Of chats and completions: `template`, `with_tools`, `system`. Empty: plain text."""
    parts: list[dict[str, Any]] = field(default_factory=list)
    """Of a mixture, the ledger of each folder: see trainer/tokens/mixture/making.py."""

    @property
    def packed(self) -> bool:
        """Whether each context is of whole documents, none of which sees another."""
        return bool(self.options.get("packing"))

    @property
    def of_pairs(self) -> bool:
        """Whether each context is a pair of texts, the better answer first: data.shape."""
        return bool(self.options.get("records", {}).get("pairs"))

    @property
    def width(self) -> int:
        """Ids of a row of tokens.bin: a pair has room for two texts of `context` ids."""
        return 2 * self.context if self.of_pairs else self.context

    @property
    def of_records(self) -> bool:
        """Whether the ledger counts records and what of them is trained: not a stream of text."""
        return bool(self.chat) or self.packed

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the store's files beside the manifest."""
        return (*FILES, MASK) if MASK in self.digests else FILES

    def to_json(self) -> str:
        """The text of manifest.json, the same for the same content on every machine."""
        fields = dict(vars(self))
        if not self.chat:  # stores of plain text are as they were before there were others
            del fields["chat"]
        if not self.parts:
            del fields["parts"]
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
    reference: np.ndarray | None = None
    """Of pairs: log-probabilities of both answers by the base model, (num_contexts, 2), float64;
    None: not known yet. See trainer/training/reference.py."""

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
        for name in manifest.files:
            check_file(folder / name, manifest.digests[name], "full" if verify else "size")
        return cls(folder, manifest, digest)

    @cached_property
    def contexts(self) -> np.ndarray:
        """Token ids, shape (num_contexts, width), uint16 or uint32, read-only."""
        shape = (self.manifest.num_contexts, self.manifest.width)
        return self._mapped("tokens.bin", np.dtype(self.manifest.dtype)).reshape(shape)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Ids of each context that are text, shape (num_contexts,), uint32."""
        return self._mapped("lengths.bin", np.dtype("<u4"))

    @cached_property
    def mask_bits(self) -> np.ndarray | None:
        """Bits of the trained ids, shape (num_contexts, ceil(context / 8)), uint8; None: all."""
        if MASK not in self.manifest.digests:
            return None
        width = -(-self.manifest.width // 8)
        return self._mapped(MASK, np.dtype(np.uint8)).reshape(self.manifest.num_contexts, width)

    def trained(self, contexts: np.ndarray | list[int]) -> np.ndarray | None:
        """Which ids of some contexts are trained, shape (len(contexts), context), bool; None: all.

        The first id of a context never is: nothing comes before it.
        """
        if self.mask_bits is None:
            return None
        bits = self.mask_bits[contexts]
        count = self.manifest.width
        return np.unpackbits(bits, axis=1, count=count, bitorder="little").astype(bool)

    def trained_tokens(self, contexts: np.ndarray | slice) -> int:
        """How many ids of some contexts are trained: of plain text all but each one's first."""
        if self.mask_bits is None:
            lengths = self.lengths[contexts].astype(np.int64)
            return int(np.maximum(lengths - 1, 0).sum())
        return int(np.bitwise_count(self.mask_bits[contexts]).sum(dtype=np.int64))

    def positions(self, contexts: np.ndarray | list[int]) -> np.ndarray | None:
        """Each id's place in its document, (len(contexts), context), int64; None: not packed.

        Padding counts from 0 as well, so that it is no part of a document.
        """
        if not self.manifest.packed:
            return None
        width, starts = self.manifest.context, self.documents["start"]
        found = np.empty((len(contexts), width), np.int64)
        for row, index in enumerate(contexts):
            begin, length = int(self.begins[index]), int(self.lengths[index])
            # Of the array's own type: else all of it would be converted.
            first, last = np.searchsorted(starts, np.array([begin, begin + length], starts.dtype))
            edges = np.append(starts[first:last].astype(np.int64) - begin, [length, width])
            found[row] = np.arange(width) - np.repeat(edges[:-1], np.diff(edges))
        return found

    def trained_of_each(self, contexts: slice) -> np.ndarray:
        """Trained tokens of each of some contexts, shape (contexts,), int64."""
        if self.mask_bits is None:
            return np.maximum(self.lengths[contexts].astype(np.int64) - 1, 0)
        return np.bitwise_count(self.mask_bits[contexts]).sum(axis=1, dtype=np.int64)

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
        fields = dict(parse_json(text))
        if fields.get("format") != FORMAT:
            raise ValueError(f"it is of another format ({fields.get('format')}, not {FORMAT})")
        before = text.rpartition(b' "self_sha256"')[0]
        if fields.pop("self_sha256", "") != hashlib.sha256(before).hexdigest():
            raise ValueError("it has other content than when it was written")
        manifest = Manifest(**fields)
    except OSError as error:
        raise DamagedError(f"{folder} is no complete token store: {error}.") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise DamagedError(f"{folder / MANIFEST} can't be read: {error}.") from error
    return manifest, hashlib.sha256(text).hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Say that the store in `folder` is complete; synced."""
    path = folder / MANIFEST
    path.write_text(manifest.to_json(), encoding="utf-8")
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def check_file(path: Path, entry: dict[str, Any], verify: Literal["size", "fast", "full"]) -> None:
    """Raise DamagedError where `path` is not what its manifest's `entry` says.

    Args:
        path: A file of a store.
        entry: What the manifest says of it.
        verify: Compare its size; or also its fast digest, if the manifest has one; or SHA-256.
    """
    try:
        size = os.path.getsize(path)
    except OSError as error:
        raise DamagedError(f"{path} is missing from its token store.") from error
    if size != entry["bytes"]:
        raise DamagedError(f"{path} has {size:,} bytes, not {entry['bytes']:,}.")
    if verify == "size":
        return
    kind = FAST if verify == "fast" and FAST in entry else "sha256"
    if file_record(path, kind)[kind] != entry[kind]:
        raise DamagedError(f"{path} has other content than when it was made.")


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
