"""Encoded text, kept under `cache/` so that the next store encodes only what changed.

A piece holds the ids of one file, or of one part of a long one:

    ids         little-endian uint16 or uint32
    documents   records of PIECE_DOCUMENT
    footer      JSON: counts, checksum
    trailer     the footer's length, and MAGIC

The trailer is written last, and a piece appears by rename: one that is there and ends
in MAGIC is whole. What a power cut leaves of it is told by the checksum.
"""

import errno
import hashlib
import json
import os
import struct
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from trainer.contract.files import writer_name
from trainer.contract.json_text import parse_json
from trainer.tokens.text.documents import Part
from trainer.tokens.text.records import JSONL_FORMAT

MAGIC = b"TOKPIECE"
PIECE_DOCUMENT = np.dtype([("tokens", "<u8"), ("hash", "<u8"), ("number", "<u8"), ("bytes", "<u8")])
"""`tokens` with the end-of-text, `bytes` of text; `number` 0: continues the piece before."""
_TRAILER = struct.Struct("<I8s")
WHOLE_BYTES = 32 << 20
"""A piece of so much is read at once; only those of compressed and remote files are longer."""
PART_IDS = 1 << 22
"""Of a longer one, in memory at a time."""


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
    unfinished: bool  # the last record's document continues in the next piece
    checksum: int


class LoadedPiece(NamedTuple):
    """A piece in memory."""

    facts: PieceFacts
    ids: np.ndarray
    records: np.ndarray
    """Of its documents, PIECE_DOCUMENT."""


def is_whole(path: str) -> bool:
    """Whether there is a whole piece at `path`; every byte is looked at."""
    return _read(path, body=False) is not None


def load_parts(path: str) -> Iterator[LoadedPiece]:
    """The piece at `path`; that of a long compressed file in parts, as if it were several.

    What is counted once comes with the last of them, the text's length with the first.

    Raises:
        FileNotFoundError: There is no whole piece, every byte looked at.
    """
    read = _read(path, body=True)
    if read is None:
        raise FileNotFoundError(errno.ENOENT, "cached tokens are gone", path)
    facts, body = read
    dtype = np.dtype(facts.dtype)
    split = facts.num_ids * dtype.itemsize
    if body is not None:
        ids = np.frombuffer(body[:split], dtype)
        yield LoadedPiece(facts, ids, np.frombuffer(body[split:], PIECE_DOCUMENT))
        return
    with open(path, "rb") as file:
        file.seek(split)
        records = np.fromfile(file, PIECE_DOCUMENT, facts.num_documents)
        file.seek(0)
        parts = list(_parts_of(records))
        for number, part in enumerate(parts):
            first, last = number == 0, number + 1 == len(parts)
            yield LoadedPiece(
                replace(
                    facts,
                    documents=facts.documents if last else 0,
                    empty=facts.empty if last else 0,
                    blank_lines=facts.blank_lines if last else 0,
                    text_bytes=facts.text_bytes if first else 0,
                    unfinished=facts.unfinished or (len(records) == 1 and not last),
                ),
                np.fromfile(file, dtype, int(part["tokens"].sum())),
                part,
            )


def _parts_of(records: np.ndarray) -> Iterator[np.ndarray]:
    """The records, so many at a time that their ids fit into memory; a single one is cut."""
    if len(records) == 1:
        left = int(records["tokens"][0])
        while left > 0:
            part = records.copy()
            part["tokens"] = min(left, PART_IDS)
            left -= PART_IDS
            yield part
        return
    ends = np.cumsum(records["tokens"].astype(np.int64))
    begin = before = 0
    while begin < len(records):
        end = max(begin + 1, int(np.searchsorted(ends, before + PART_IDS, side="right")))
        yield records[begin:end]
        begin, before = end, int(ends[end - 1])


def _read(path: str, body: bool) -> tuple[PieceFacts, memoryview | None] | None:
    """A whole piece's footer, and what is before it if that is short and `body`; else None."""
    try:
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            tail = max(0, size - WHOLE_BYTES)
            file.seek(tail)
            content = file.read(WHOLE_BYTES)
            length, magic = _TRAILER.unpack(content[-_TRAILER.size :])
            end = size - _TRAILER.size - length
            if magic != MAGIC or end < tail:
                return None
            facts = PieceFacts(**parse_json(content[end - tail : -_TRAILER.size]))
            itemsize = np.dtype(facts.dtype).itemsize
            if end != facts.num_ids * itemsize + facts.num_documents * PIECE_DOCUMENT.itemsize:
                return None
            checksum = 0
            if tail:
                file.seek(0)
                while (at := file.tell()) < tail:
                    checksum = zlib.crc32(file.read(min(1 << 20, tail - at)), checksum)
    except (OSError, ValueError, TypeError, RecursionError, struct.error):
        return None
    rest = memoryview(content)[: end - tail]
    if zlib.crc32(rest, checksum) != facts.checksum:
        return None
    return facts, rest if body and not tail else None


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
        """Say that the piece's last document continues in the next piece."""
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
    if part.kind == "jsonl":
        reads.append(JSONL_FORMAT)
    how = hashlib.sha256(json.dumps(reads).encode()).hexdigest()[:12]
    return f"{folder}/{part.digest[:2]}/{part.digest}-{how}"
