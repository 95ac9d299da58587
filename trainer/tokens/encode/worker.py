"""Make pieces: read, sanitize, encode, write. Also a process of its own: see crew.py.

    python -m trainer.tokens.encode.worker TOKENIZER SOCKET...

One process for each socket (an open descriptor). Each takes one JSON line per task and
answers with one; it ends when its socket does, so none outlives its parent.
"""

import contextlib
import hashlib
import json
import os
import signal
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer import host_memory
from trainer.contract.errors import RequestError, StepError
from trainer.contract.json_text import parse_json
from trainer.tokens.encode.encoder import (
    Encoder,
    OwnEncoder,
    fast_encoder,
    hard_texts,
    prove,
    prove_each,
)
from trainer.tokens.encode.pieces import PieceWriter
from trainer.tokens.text.cuts import PIECE_BYTES
from trainer.tokens.text.documents import Part, Text
from trainer.tokens.text.reading import read_texts
from trainer.tokens.text.samples import read_samples
from trainer.tokens.text.sanitize import mend_encoding, sanitize
from trainer.tokens.text.sources import Source, current_stamp, shown

_MOST_GROWTH_BYTES = 100 << 20
"""Of one process: its buffers take about half of it, remembered words the rest."""
_FULL = 3  # exit code of a process whose memory has grown by that
_HASHED_BYTES = 1 << 16
"""A document's hash is that of its first text: the same however it is cut and stored."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What decides the content of a piece, beside the file."""

    tokenizer: str
    """Path of the exported tokenizer."""
    sanitize: bool
    eot: int
    dtype: str
    fast: bool
    cuts: bool
    before: Sequence[int] = ()
    """Ids that every document begins with."""


class PieceMaker:
    """Makes pieces with one encoder."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.dtype = np.dtype(recipe.dtype)
        tokenizer_json = read_tokenizer(recipe.tokenizer)
        fast = fast_encoder(tokenizer_json) if recipe.fast else None
        self.encoder: Encoder = fast or OwnEncoder(tokenizer_json, recipe.cuts)

    def make(self, part: Part, stamp: str, path: str) -> int:
        """Make the piece of `part`; nothing is there unless all of it was read.

        Args:
            part: What to read.
            stamp: Of the source when its digest was taken.
            path: Where the piece is to be.
        Returns:
            How many ids the piece has.
        """
        with PieceWriter(Path(path), self.dtype) as writer:
            batch = _Batch(self, writer, part)
            try:
                for text in read_texts(part):
                    batch.add(text)
                batch.finish()
            except UnicodeDecodeError as error:  # it was UTF-8 when its digest was taken
                raise _changed(part) from error
            if current_stamp(part.location, part.remote) != stamp:
                raise _changed(part)
            writer.close()
            return writer.num_ids

    def prepare(self, text: Text) -> bytes:
        """A document, or a part of one, as it is encoded."""
        raw = text.text
        if self.recipe.sanitize:
            # A part is cut off between a letter and white space: a letter stands for the rest.
            raw = sanitize(raw) if text.first else sanitize(b"a" + raw)[1:]
        return mend_encoding(raw)


def _changed(part: Part) -> StepError:
    return StepError(
        f"{shown(part.location)} changed while it was read. "
        "Run it again when nothing writes to the dataset."
    )


class _Batch:
    """Texts that are encoded in one call, and the records of their documents."""

    def __init__(self, maker: PieceMaker, writer: PieceWriter, part: Part) -> None:
        self.maker = maker
        self.writer = writer
        self.texts: list[str] = []
        self.firsts: list[bool] = []
        self.lasts: list[bool] = []
        self.records: list[list[int]] = []  # tokens, hash, number, bytes; one for each text
        self.size = 0
        self.open = False  # whether the last text's document continues
        if part.kind == "text" and part.start:
            writer.continues()

    def add(self, text: Text | None) -> None:
        """Take the next text; None counts a blank line."""
        if text is None:
            self.writer.blank_lines += 1
            return
        self.writer.text_bytes += len(text.text)
        self.open = not text.last
        prepared = self.maker.prepare(text)
        digest = number = 0
        if text.first:
            self.writer.documents += 1
            if text.last and not prepared:
                self.writer.empty += 1
                return
            head = hashlib.blake2b(prepared[:_HASHED_BYTES], digest_size=8).digest()
            digest, number = int.from_bytes(head, "little"), self.writer.documents
        self.texts.append(prepared.decode())
        self.firsts.append(text.first)
        self.lasts.append(text.last)
        self.records.append([0, digest, number, len(text.text)])
        self.size += len(prepared)
        if self.size >= PIECE_BYTES or len(self.texts) >= 8192:
            self.flush()

    def flush(self) -> None:
        """Encode what was taken."""
        if not self.texts:
            return
        recipe = self.maker.recipe
        ids, ends = self.maker.encoder.encode(self.texts)
        firsts, lasts = np.array(self.firsts), np.array(self.lasts)
        counts = (np.diff(ends) + lasts + firsts * len(recipe.before)).tolist()
        ids = with_marks(ids, ends, firsts, lasts, recipe.before, recipe.eot)
        for record, count in zip(self.records, counts, strict=True):
            record[0] = count
        self.writer.add(ids, self.records)
        self.texts, self.firsts, self.lasts, self.records, self.size = [], [], [], [], 0

    def finish(self) -> None:
        """Encode the rest."""
        if self.open:
            self.writer.unfinished()
        self.flush()


def with_marks(
    ids: np.ndarray,
    ends: np.ndarray,
    firsts: np.ndarray,
    lasts: np.ndarray,
    before: Sequence[int],
    eot: int,
) -> np.ndarray:
    """Ids with what begins and ends each document.

    Args:
        ids: Of all texts.
        ends: Where each text begins and the last ends, shape (texts + 1,).
        firsts: Which texts begin a document, shape (texts,), bool.
        lasts: Which texts end one.
        before: Ids that a document begins with.
        eot: The id that ends it.
    """
    if not before:
        return np.insert(ids, ends[1:][lasts], eot)
    begun, ended = np.flatnonzero(firsts).repeat(len(before)), np.flatnonzero(lasts)
    # In the order of the texts: one without any id has all of its marks at one place.
    order = np.argsort(np.concatenate([2 * begun, 2 * ended + 1]), kind="stable")
    places = np.concatenate([ends[begun], ends[ended + 1]])
    marks = np.concatenate([np.tile(before, firsts.sum()), np.full(len(ended), eot)])
    return np.insert(ids, places[order], marks[order])


# --- the process ------------------------------------------------------------------------


def answer(task: dict[str, Any], makers: dict[str, PieceMaker]) -> dict[str, Any]:
    """Do one task of the process: prove an encoder, or make pieces."""
    if "prove" in task:
        tokenizer_json = read_tokenizer(task["tokenizer"])
        if task["prove"] is None:
            return {"proofs": [prove(tokenizer_json, hard_texts(tokenizer_json))]}
        places = [(Source(*source), offset) for source, offset in task["prove"]]
        read_by = task["sanitize"], task["text_field"]
        return {
            "proofs": prove_each(
                tokenizer_json, [read_samples([place], *read_by) for place in places]
            )
        }
    if "maker" not in makers:
        makers["maker"] = PieceMaker(Recipe(**task["recipe"]))
    maker = makers["maker"]
    return {"ids": sum(maker.make(Part(*part), stamp, path) for part, stamp, path in task["make"])}


def read_tokenizer(path: str) -> str:
    """tokenizer.json of an exported tokenizer."""
    return parse_json(Path(path).read_text(encoding="utf-8"))["tokenizer_json"]


def serve(connection: socket.socket) -> None:
    """Answer tasks until there are no more, in one fork after another.

    An encoder remembers the words it has seen, without end where each is another; a proof
    loads both encoders. That memory goes with the fork; the tokenizer stays.
    """
    with connection:
        while child := os.fork():
            if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != _FULL:
                return
        os._exit(_serve(connection))


def _serve(connection: socket.socket) -> int:
    """Answer tasks until there are no more, or _FULL when memory has grown too much."""
    makers: dict[str, PieceMaker] = {}
    began = _resident_bytes()
    # The process that asked may be gone.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        # Not buffered: what this process has not read is for the next one.
        for line in connection.makefile("rb", buffering=0):
            task = parse_json(line)
            connection.sendall(json.dumps(_reply(task, makers)).encode() + b"\n")
            if "prove" in task or _resident_bytes() - began > _MOST_GROWTH_BYTES:
                return _FULL
    return 0


def _resident_bytes() -> int:
    """Memory of this process; 0 where the system does not say."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]
    except OSError:
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _reply(task: dict[str, Any], makers: dict[str, PieceMaker]) -> dict[str, Any]:
    try:
        return answer(task, makers)
    except RequestError as error:
        return {"refused": error.problems}
    except StepError as error:
        return {"failed": str(error)}
    except OSError as error:
        return {"os_error": [error.errno, str(error)]}


def main(tokenizer: str, *descriptors: str) -> int:
    """Be as many processes as there are sockets."""
    # The parent decides when to stop: a terminal's Ctrl-C reaches this process too.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    host_memory.keep_freed()
    fast_encoder(read_tokenizer(tokenizer))  # which all of them share
    first, *others = [socket.socket(fileno=int(descriptor)) for descriptor in descriptors]
    children = []
    for index, connection in enumerate(others):
        child = os.fork()
        if not child:
            for other in (first, *others[:index], *others[index + 1 :]):
                other.close()
            serve(connection)
            os._exit(0)
        children.append(child)
    for connection in others:
        connection.close()
    serve(first)
    for child in children:
        os.waitpid(child, 0)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
