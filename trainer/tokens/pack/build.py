"""From pieces to a store: two streams, packed apart, and the ledger.

Takes pieces one after another, while the next ones are being made, and holds no more than
a window of the stream. Held-out ids wait in a file: their contexts come last.
"""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from trainer.tokens.encode.progress import Progress
from trainer.tokens.pack.ledger import Tally
from trainer.tokens.pack.packing import Packer, Rules, kept_by_sampling, rows
from trainer.tokens.store import FAST


class HashedFile:
    """A file that is written once, from beginning to end, with its digest."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb")  # noqa: SIM115 - closed by close()
        self._digests: dict[str, Any] = {"sha256": hashlib.sha256(), FAST: xxhash.xxh3_128()}
        self.bytes = 0

    def write(self, block: np.ndarray) -> None:
        """Append an array's bytes."""
        view = np.ascontiguousarray(block).reshape(-1).view(np.uint8).data
        self._file.write(view)
        for digest in self._digests.values():
            digest.update(view)
        self.bytes += len(view)

    def close(self) -> dict[str, object]:
        """Sync it; returns its entry in the manifest's digests."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        found = {kind: digest.hexdigest() for kind, digest in self._digests.items()}
        return {"bytes": self.bytes, **found}


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
