"""From pieces to a store: two streams, packed apart, and the ledger.

Reads pieces one after another and never holds more than a window of the stream, so the
memory it takes depends neither on the corpus nor on its files.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from trainer.tokens.ledger import Tally
from trainer.tokens.packing import Packer, Rules, kept_by_sampling, rows
from trainer.tokens.pieces import Piece
from trainer.tokens.split import Read, ShareCount, Split
from trainer.tokens.store import DOCUMENT


class SourcePieces:
    """The pieces of one file, in order."""

    __slots__ = ("_opened", "file", "paths")

    def __init__(self, file: int) -> None:
        self.file = file
        self.paths: list[Path] = []
        self._opened: list[Piece] = []

    def open(self) -> list[Piece]:
        """All of them; they were made or verified before."""
        if not self._opened:
            found = [piece for path in self.paths if (piece := Piece.open(path))]
            assert len(found) == len(self.paths), self.paths
            self._opened, self.paths = found, []
        return self._opened


class Stretch(NamedTuple):
    """Ids of one piece that go to one stream, and where documents begin among them."""

    piece: Piece
    begin: int  # in the piece
    end: int
    starts: np.ndarray  # in the piece, of each part of a document, ascending
    numbers: np.ndarray  # of those documents in their file


class LongDocument:
    """The one document of a file that is in several pieces."""

    def __init__(self, pieces: list[Piece]) -> None:
        self.pieces = pieces
        self.edges = np.cumsum([0, *(piece.facts.num_ids for piece in pieces)])
        self.length = int(self.edges[-1])
        self.hash = int(pieces[0].documents()["hash"][0])

    def places(self, begin: int, end: int) -> Iterator[tuple[Piece, int, int]]:
        """Where its ids from `begin` to `end` are in its pieces."""
        at = int(np.searchsorted(self.edges, begin, side="right")) - 1
        while begin < min(end, self.length):
            stop = min(end, int(self.edges[at + 1]))
            yield self.pieces[at], begin - int(self.edges[at]), stop - int(self.edges[at])
            begin, at = stop, at + 1

    def read(self, begin: int, end: int) -> np.ndarray:
        """Its ids from `begin` to `end`, or to where it ends."""
        found = [piece.ids(low, high) for piece, low, high in self.places(begin, end)]
        return np.concatenate(found) if found else np.empty(0, np.int64)


def share_threshold(sources: Iterable[SourcePieces], split: Split) -> int:
    """Below which hash documents are held out; see split.py."""
    count = ShareCount(split)
    for source in sources:
        pieces = source.open()
        if pieces[0].facts.unfinished:
            document = LongDocument(pieces)
            count.add(np.array([document.length]), np.array([document.hash], np.uint64))
        else:
            for piece in pieces:
                records = piece.documents()
                count.add(records["tokens"].astype(np.int64), records["hash"])
    return count.threshold()


def stretches(source: SourcePieces, split: Split, held: bool) -> Iterator[Stretch]:
    """What of one file goes to one of the two streams, in order."""
    pieces = source.open()
    if pieces[0].facts.unfinished:
        document = LongDocument(pieces)
        for begin, end in _sides(split, document.hash, document.length, document.read, held):
            fresh = np.ones(1, np.int64)
            for piece, low, high in document.places(begin, end):
                yield Stretch(piece, low, high, low * fresh, fresh)
                fresh = fresh[:0]
        return
    before = 0
    for piece in pieces:
        yield from _of_piece(piece, before, split, held)
        before += piece.facts.documents


def _of_piece(piece: Piece, before: int, split: Split, held: bool) -> Iterator[Stretch]:
    """Stretches of a piece that holds whole documents; neighbours are joined."""
    records = piece.documents()
    lengths = records["tokens"].astype(np.int64)
    ends = np.cumsum(lengths)
    long = split.is_long(lengths)
    wanted = ~long & ((records["hash"] < split.threshold) == held)
    numbers = before + records["number"].astype(np.int64)
    parts = [np.stack([ends - lengths, ends, numbers])[:, wanted]]
    for index in np.flatnonzero(long):
        length, number = int(lengths[index]), int(numbers[index])
        begin = int(ends[index]) - length

        def read(low: int, high: int, begin: int = begin, length: int = length) -> np.ndarray:
            return piece.ids(begin + min(low, length), begin + min(high, length))

        for low, high in _sides(split, int(records["hash"][index]), length, read, held):
            parts.append(np.array([[begin + low], [begin + high], [number]]))
    found = np.concatenate(parts, axis=1)
    starts, stops, numbers = found[:, np.argsort(found[0], kind="stable")]
    for run in np.split(np.arange(len(starts)), np.flatnonzero(starts[1:] != stops[:-1]) + 1):
        if len(run):
            yield Stretch(
                piece, int(starts[run[0]]), int(stops[run[-1]]), starts[run], numbers[run]
            )


def _sides(
    split: Split, document_hash: int, length: int, read: Read, held: bool
) -> list[tuple[int, int]]:
    """A document's stretches that are held out, or those that are not."""
    if split.is_long(length):
        out = split.stretches(document_hash, length, read)
    else:
        out = [(0, length)] if document_hash < split.threshold else []
    if held:
        return out
    edges = [0, *(edge for stretch in out for edge in stretch), length]
    return [pair for pair in zip(edges[::2], edges[1::2], strict=True) if pair[0] < pair[1]]


class HashedFile:
    """A file that is written once, from beginning to end, with its digest."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb")  # noqa: SIM115 - closed by close()
        self._digest = hashlib.sha256()
        self.bytes = 0

    def write(self, block: np.ndarray) -> None:
        """Append an array's bytes."""
        view = np.ascontiguousarray(block).reshape(-1).view(np.uint8).data
        self._file.write(view)
        self._digest.update(view)
        self.bytes += len(view)

    def close(self) -> dict[str, object]:
        """Sync it; returns its entry in the manifest's digests."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return {"bytes": self.bytes, "sha256": self._digest.hexdigest()}


class ContextWriter:
    """Writes the contexts of one stream after another, and keeps the ledger."""

    def __init__(
        self, folder: Path, dtype: np.dtype, context: int, pad: int, sampling: int
    ) -> None:
        self.dtype, self.context, self.pad, self.sampling = dtype, context, pad, sampling
        self.files = {
            name: HashedFile(folder / f"{name}.bin")
            for name in ("tokens", "lengths", "begins", "documents")
        }
        self.tally: Tally | None = None
        self.num_contexts = self.num_tokens = 0
        self._seen = 0  # contexts of this stream, before sampling
        self._stream_begin = 0  # of this stream among all

    def take(
        self, window: np.ndarray, base: int, begins: np.ndarray, ends: np.ndarray, nexts: np.ndarray
    ) -> None:
        """See packing.Sink."""
        kept = kept_by_sampling(self._seen, len(begins), self.sampling)
        self._seen += len(begins)
        assert self.tally
        self.tally.add_contexts(begins + base, ends + base, nexts + base, kept)
        begins, lengths = begins[kept], (ends - begins)[kept]
        step = max(1, (4 << 20) // self.context)  # rows of at most 16 MiB at a time
        for at in range(0, len(begins), step):
            some = slice(at, at + step)
            block = rows(window, begins[some], lengths[some], self.context, self.pad)
            self.files["tokens"].write(block.astype(self.dtype, copy=False))
        self.files["lengths"].write(lengths.astype("<u4"))
        self.files["begins"].write((begins + base + self._stream_begin).astype("<u8"))
        self.num_contexts += len(begins)
        self.num_tokens += int(lengths.sum())

    def write_stream(
        self, sources: list[SourcePieces], split: Split, held: bool, rules: Rules
    ) -> dict[str, np.ndarray]:
        """Pack one stream; returns its counts by file, see ledger.COLUMNS."""
        self.tally, self._seen = Tally(len(sources)), 0
        packer = Packer(rules, split.begins_inside, self)
        position = 0
        for source in sources:
            began = position
            self.tally.begin_file(source.file, position)
            for stretch in stretches(source, split, held):
                records = np.empty(len(stretch.starts), DOCUMENT)
                offset = self._stream_begin + position - stretch.begin
                records["start"] = stretch.starts + offset
                records["file"], records["number"] = source.file, stretch.numbers
                self.files["documents"].write(records)
                packer.feed(stretch.piece.ids(stretch.begin, stretch.end))
                position += stretch.end - stretch.begin
            self.tally.add_encoded(source.file, position - began)
        packer.finish()
        self._stream_begin += position
        return self.tally.counts

    def close(self) -> dict[str, dict[str, object]]:
        """Sync all files; returns the manifest's digests."""
        return {f"{name}.bin": file.close() for name, file in self.files.items()}


def shuffle(
    folder: Path, dtype: np.dtype, context: int, parts: list[tuple[int, int]], seed: int
) -> dict[str, dict[str, object]]:
    """Put the contexts of each part of a store into an order drawn from `seed`.

    Returns:
        The manifest's digests of the files that were written anew.
    """
    order = np.concatenate([begin + drawn_order(end - begin, seed) for begin, end in parts])
    digests = {}
    for name, width in (("tokens", context * dtype.itemsize), ("lengths", 4), ("begins", 8)):
        path = folder / f"{name}.bin"
        ordered = HashedFile(folder / f"{name}.ordered")
        with open(path, "rb") as file:
            step = max(1, (16 << 20) // width)
            for at in range(0, len(order), step):
                some = order[at : at + step].tolist()
                block = b"".join([os.pread(file.fileno(), width, row * width) for row in some])
                ordered.write(np.frombuffer(block, np.uint8))
        digests[f"{name}.bin"] = ordered.close()
        (folder / f"{name}.ordered").rename(path)
    return digests


def drawn_order(count: int, seed: int) -> np.ndarray:
    """A permutation of `count` drawn from `seed`: the same with every version of numpy.

    Source: the keys are SplitMix64's outputs for consecutive states (Steele et al., 2014).
    """
    with np.errstate(over="ignore"):
        keys = np.arange(count, dtype=np.uint64) + np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15)
        keys = (keys + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        keys ^= keys >> np.uint64(31)
    return np.argsort(keys, kind="stable")
