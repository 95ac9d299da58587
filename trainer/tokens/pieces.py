"""Encoded text, kept under `cache/` so that the next store encodes only what changed.

A piece holds the ids of one file, or of one part of a long one:

    ids         little-endian uint16 or uint32
    documents   records of PIECE_DOCUMENT
    footer      JSON: counts, checksum
    trailer     the footer's length, and MAGIC

The trailer is written last, and a piece appears by rename: one that is there and ends
in MAGIC is whole. What a power cut leaves of it is told by the checksum.
"""

import hashlib
import json
import os
import struct
import zlib
from array import array
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from trainer.outcome import writer_name
from trainer.tokens.documents import Part

MAGIC = b"TOKPIECE"
PIECE_DOCUMENT = np.dtype([("tokens", "<u8"), ("hash", "<u8"), ("number", "<u8"), ("bytes", "<u8")])
"""`tokens` with the end-of-text, `bytes` of text; `number` 0: continues the piece before."""
_TRAILER = struct.Struct("<I8s")


@dataclass(frozen=True, kw_only=True, slots=True)
class PieceFacts:
    """A piece's footer."""

    dtype: str
    num_ids: int
    num_documents: int  # records
    documents: int  # that begin in the piece, empty ones too
    empty: int
    blank_lines: int
    text_bytes: int
    continues: bool  # the first record continues a document
    unfinished: bool  # the last record's document goes on in the next piece
    checksum: int


class LoadedPiece(NamedTuple):
    """A piece in memory."""

    facts: PieceFacts
    ids: np.ndarray
    records: np.ndarray
    """Of its documents, PIECE_DOCUMENT."""


def load_piece(path: str) -> LoadedPiece | None:
    """The piece at `path`, or None where there is no whole one, every byte looked at."""
    try:
        with open(path, "rb", buffering=0) as file:
            content = file.read()
        length, magic = _TRAILER.unpack(content[-_TRAILER.size :])
        end = len(content) - _TRAILER.size - length
        if magic != MAGIC or end < 0:
            return None
        facts = PieceFacts(**json.loads(content[end : -_TRAILER.size]))
    except (OSError, ValueError, TypeError, struct.error):
        return None
    body = memoryview(content)[:end]
    dtype = np.dtype(facts.dtype)
    split = facts.num_ids * dtype.itemsize
    if end != split + facts.num_documents * PIECE_DOCUMENT.itemsize:
        return None
    if zlib.crc32(body) != facts.checksum:
        return None
    return LoadedPiece(
        facts, np.frombuffer(body[:split], dtype), np.frombuffer(body[split:], PIECE_DOCUMENT)
    )


class PieceWriter:
    """Writes one piece; nothing is at `path` before `close`."""

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self.path = path
        self.dtype = dtype
        self.documents = self.empty = self.blank_lines = self.text_bytes = 0
        self._records = array("Q")  # four numbers a document
        self.num_ids = self._checksum = 0
        self._continues = self._unfinished = False
        path.parent.mkdir(parents=True, exist_ok=True)
        self._beside = path.parent.parent / f".{writer_name()}"
        self._file = open(self._beside, "wb")  # noqa: SIM115 - closed by close() and __exit__()

    def __enter__(self) -> "PieceWriter":
        return self

    def __exit__(self, *failure: object) -> None:
        self._file.close()
        self._beside.unlink(missing_ok=True)

    def add(self, ids: np.ndarray, records: list[list[int]]) -> None:
        """Append ids, and tokens, hash, number and bytes of each text they belong to.

        Records that have no number continue the document of the one before.
        """
        assert not len(ids) or int(ids.max()) <= np.iinfo(self.dtype).max
        self._write(ids.astype(self.dtype).data)
        self.num_ids += len(ids)
        for record in records:
            if record[2] or not self._records:
                self._records.extend(record)
            else:
                self._records[-4] += record[0]
                self._records[-1] += record[3]

    def continues(self) -> None:
        """Say that the piece begins inside a document."""
        self._continues = True

    def unfinished(self) -> None:
        """Say that the piece's last document goes on in the next piece."""
        self._unfinished = True

    def close(self) -> None:
        """Finish the piece: from here on it is there."""
        self._write(self._records.tobytes())
        facts = PieceFacts(
            dtype=self.dtype.str,
            num_ids=self.num_ids,
            num_documents=len(self._records) // 4,
            documents=self.documents,
            empty=self.empty,
            blank_lines=self.blank_lines,
            text_bytes=self.text_bytes,
            continues=self._continues,
            unfinished=self._unfinished,
            checksum=self._checksum,
        )
        footer = json.dumps(asdict(facts)).encode()
        self._file.write(footer + _TRAILER.pack(len(footer), MAGIC))
        self._file.close()
        # Not synced: a piece lost in a power cut is only encoded again.
        os.replace(self._beside, self.path)

    def _write(self, block: bytes | memoryview) -> None:
        self._checksum = zlib.crc32(block, self._checksum)
        self._file.write(block)


def piece_path(folder: Path, part: Part) -> str:
    """Where the piece of `part` is kept in `folder`, that of one encoder and its options.

    Named by what it is made from, so that a file that moved or was renamed is found again.
    """
    reads = [part.kind, part.compression, part.start, part.stop, part.cut]
    if part.kind != "text":
        reads.append(part.text_field)
    how = hashlib.sha256(json.dumps(reads).encode()).hexdigest()[:12]
    return f"{folder}/{part.digest[:2]}/{part.digest}-{how}"
