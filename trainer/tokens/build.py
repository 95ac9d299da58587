"""From pieces to a store: two streams, packed apart, and the ledger.

Takes pieces one after another, while the next ones are being made, and holds no more than
a window of the stream. Held-out ids wait in a file: their contexts come last.
"""

import hashlib
import itertools
import os
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from trainer.tokens.ledger import Tally
from trainer.tokens.packing import Packer, Rules, kept_by_sampling, rows
from trainer.tokens.pieces import LoadedPiece
from trainer.tokens.progress import Progress
from trainer.tokens.split import ShareCount, Split
from trainer.tokens.store import DOCUMENT


class Parts(NamedTuple):
    """Ids in the order of a file, and what each part of them is."""

    ids: np.ndarray
    lengths: np.ndarray  # of each part, shape (parts,)
    numbers: np.ndarray  # of its document in the file
    fresh: np.ndarray  # whether it begins where the part before it, of its stream, did not end
    held: np.ndarray  # whether it is held out

    def of(self, held: bool, position: int, file: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids of one stream, and the records of their documents from `position` on."""
        wanted = self.held == held
        if not wanted.any():
            return self.ids[:0], np.empty(0, DOCUMENT)
        ids = self.ids if wanted.all() else self.ids[np.repeat(wanted, self.lengths)]
        lengths = self.lengths[wanted]
        fresh = self.fresh[wanted]
        records = np.empty(int(fresh.sum()), DOCUMENT)
        records["start"] = position + (np.cumsum(lengths) - lengths)[fresh]
        records["file"], records["number"] = file, self.numbers[wanted][fresh]
        return ids, records


def divide(pieces: Iterable[LoadedPiece], split: Split, share: ShareCount) -> Iterator[Parts]:
    """The parts of one file, each on its side, in order; what they are is added to `share`."""
    before = 0
    left = iter(pieces)
    for piece in left:
        if piece.facts.unfinished:  # it is the only one in this piece, and goes on in others
            before += yield from _long_document(piece, left, split, share, before)
            continue
        records = piece.records
        lengths, hashes = records["tokens"].astype(np.int64), records["hash"]
        numbers = before + records["number"].astype(np.int64)
        before += piece.facts.documents
        fresh = np.ones(len(lengths), bool)
        parts = Parts(piece.ids, lengths, numbers, fresh, split.is_held(hashes))
        long = split.is_long(records["bytes"], lengths)
        share.add(hashes, lengths, long)
        yield _cut_long(parts, np.flatnonzero(long), hashes, split)


def _cut_long(parts: Parts, long: np.ndarray, hashes: np.ndarray, split: Split) -> Parts:
    """The same, with the documents `long` cut."""
    if not len(long):
        return parts
    ends = np.cumsum(parts.lengths)
    columns: list[list[np.ndarray]] = [[] for _ in parts[1:]]
    done = 0
    for index in long.tolist():
        document = parts.ids[ends[index] - parts.lengths[index] : ends[index]]
        blocks = _in_blocks([document], split)
        number = int(parts.numbers[index])
        cut = [part[1:] for part in _cut_blocks(blocks, split, number, int(hashes[index]))]
        whole = [column[done:index] for column in parts[1:]]
        for column, pieces in zip(columns, zip(whole, *cut, strict=True), strict=True):
            column.extend(pieces)
        done = index + 1
    for column, rest in zip(columns, parts[1:], strict=True):
        column.append(rest[done:])
    return Parts(parts.ids, *(np.concatenate(column) for column in columns))


def _long_document(
    first: LoadedPiece, rest: Iterator[LoadedPiece], split: Split, share: ShareCount, before: int
) -> Generator[Parts, None, int]:
    """A document in several pieces: `first`, and as many as it takes from `rest`.

    Returns:
        How many documents begin in these pieces, empty ones too; `before` are before them.
    """
    seen = {"bytes": 0, "tokens": 0, "documents": 0}

    def all_ids() -> Iterator[np.ndarray]:
        for piece in itertools.chain([first], rest):
            seen["bytes"] += piece.facts.text_bytes
            seen["tokens"] += len(piece.ids)
            seen["documents"] += piece.facts.documents
            yield piece.ids
            if not piece.facts.unfinished:
                return

    blocks = _in_blocks(all_ids(), split) if split.share else all_ids()
    first_block = next(blocks)
    blocks = itertools.chain([first_block], blocks)
    hashes, number = first.records["hash"][:1], before + int(first.records["number"][0])
    long = split.is_long(np.array([seen["bytes"]]), np.array([seen["tokens"]]))
    share.add(hashes, np.array([len(first_block)]), long)
    if long[0]:
        yield from _cut_blocks(blocks, split, number, int(hashes[0]))
        return seen["documents"]
    held, fresh = split.is_held(hashes), np.ones(1, bool)
    for block in blocks:
        yield Parts(block, np.array([len(block)]), np.array([number]), fresh, held)
        fresh = np.zeros(1, bool)
    return seen["documents"]


def _cut_blocks(
    blocks: Iterable[np.ndarray], split: Split, number: int, document_hash: int
) -> Iterator[Parts]:
    """A long document, block by block."""
    last: bool | None = None  # the side of the part before
    for ids in blocks:
        begin, end = split.window(ids, document_hash if last is None else -1)
        lengths = np.array([begin, end - begin, len(ids) - end])
        there = lengths > 0
        held = np.array([False, True, False])[there]
        fresh = np.ones(len(held), bool)
        fresh[0], fresh[1:] = held[0] != last, held[1:] != held[:-1]
        yield Parts(ids, lengths[there], np.full(len(held), number), fresh, held)
        last = bool(held[-1])


def _in_blocks(chunks: Iterable[np.ndarray], split: Split) -> Iterator[np.ndarray]:
    """The same ids in blocks of `split`, the last one of what is left."""
    pending: list[np.ndarray] = []
    count = 0
    for chunk in chunks:
        pending.append(chunk)
        count += len(chunk)
        while count > split.block:  # one that is full waits: it may be the last
            ids = np.concatenate(pending)
            edge = split.edge(ids)
            yield ids[:edge]
            pending, count = [ids[edge:]], count - edge
    yield np.concatenate(pending)


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
        self.num_contexts = self.num_tokens = 0
        self.position = 0  # of the next id in its stream
        self._stream_begin = 0  # of this stream among all

    def begin_stream(
        self, num_files: int, rules: Rules, begins_inside: np.ndarray, first: int = 0
    ) -> None:
        """The next ids are of a stream of their own, its contexts sampled from number `first`."""
        self.tally = Tally(num_files)
        self._packer = Packer(rules, begins_inside, self)
        self._stream_begin += self.position
        self.position, self._seen = 0, first  # seen: contexts before sampling

    def feed(self, file: int, ids: np.ndarray, records: np.ndarray) -> None:
        """Append ids of `file`, and records of documents whose `start` is in this stream."""
        if not len(ids):
            return
        self.tally.begin_file(file, self.position)
        self.tally.add_encoded(file, len(ids))
        self.position += len(ids)
        records["start"] += self._stream_begin
        self.files["documents"].write(records)
        self._packer.feed(ids)

    def end_stream(self) -> dict[str, np.ndarray]:
        """Pack what is left of the stream; returns its counts by file, see ledger.COLUMNS."""
        self._packer.finish()
        return self.tally.counts

    def take(
        self, window: np.ndarray, base: int, begins: np.ndarray, ends: np.ndarray, nexts: np.ndarray
    ) -> None:
        """See packing.Sink."""
        kept = kept_by_sampling(self._seen, len(begins), self.sampling)
        self._seen += len(begins)
        self.tally.add_contexts(begins + base, ends + base, nexts + base, kept)
        begins, lengths = begins[kept], (ends - begins)[kept]
        step = max(1, (2 << 20) // self.context)  # rows of at most 8 MiB at a time
        for at in range(0, len(begins), step):
            some = slice(at, at + step)
            block = rows(window, begins[some], lengths[some], self.context, self.pad)
            self.files["tokens"].write(block.astype(self.dtype, copy=False))
        self.files["lengths"].write(lengths.astype("<u4"))
        self.files["begins"].write((begins + base + self._stream_begin).astype("<u8"))
        self.num_contexts += len(begins)
        self.num_tokens += int(lengths.sum())

    def close(self) -> dict[str, dict[str, object]]:
        """Sync all files; returns the manifest's digests."""
        return {f"{name}.bin": file.close() for name, file in self.files.items()}


class HeldOut:
    """The held-out stream, kept in a file until the training stream is packed."""

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self.path, self.dtype = path, dtype
        self._file = open(path, "wb")  # noqa: SIM115 - closed by replay()
        self._feeds: list[tuple[int, int, np.ndarray]] = []  # file, ids, records
        self.position = 0

    def add(self, file: int, ids: np.ndarray, records: np.ndarray) -> None:
        """See ContextWriter.feed."""
        if len(ids):
            self._file.write(np.ascontiguousarray(ids).data)
            self._feeds.append((file, len(ids), records))
            self.position += len(ids)

    def replay(self, writer: ContextWriter) -> None:
        """Feed all of it to `writer`; the file is gone afterwards."""
        self._file.close()
        progress = Progress("held-out tokens", self.position * self.dtype.itemsize)
        with open(self.path, "rb") as stored:
            for file, count, records in self._feeds:
                writer.feed(file, np.fromfile(stored, self.dtype, count), records)
                progress.add(count * self.dtype.itemsize, count)
        progress.end()
        self.path.unlink()


def shuffle(
    folder: Path, dtype: np.dtype, context: int, parts: list[tuple[int, int]], seed: int
) -> dict[str, dict[str, object]]:
    """Put the contexts of each part of a store into an order drawn from `seed`.

    Returns:
        The manifest's digests of the files that were written anew.
    """
    order = np.concatenate([begin + drawn_order(end - begin, seed) for begin, end in parts])
    digests = {}
    progress = Progress("shuffle", len(order) * (context * dtype.itemsize + 4 + 8))
    for name, width in (("tokens", context * dtype.itemsize), ("lengths", 4), ("begins", 8)):
        path = folder / f"{name}.bin"
        ordered = HashedFile(folder / f"{name}.ordered")
        with open(path, "rb") as file:
            step = max(1, (16 << 20) // width)
            for at in range(0, len(order), step):
                some = order[at : at + step].tolist()
                block = b"".join([os.pread(file.fileno(), width, row * width) for row in some])
                ordered.write(np.frombuffer(block, np.uint8))
                progress.add(len(block), 0)
        digests[f"{name}.bin"] = ordered.close()
        (folder / f"{name}.ordered").rename(path)
    progress.end()
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
