"""From the pieces of a file to its parts: what is trained on, and what is held out."""

import itertools
from collections.abc import Generator, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from trainer.tokens.encode.pieces import LoadedPiece
from trainer.tokens.pack.split import ShareCount, Split
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
        if piece.facts.unfinished:  # it is the only one in this piece, and continues in others
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
