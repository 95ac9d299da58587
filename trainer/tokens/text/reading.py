"""From the bytes of a file, or of a part of one, to the text of its documents.

Reads as a stream: of a text file, however large and also when compressed, no more than
a piece is in memory at a time; of JSONL a line, of parquet a batch of rows.
"""

import codecs
import contextlib
import gzip
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from trainer.contract.errors import RequestError, StepError
from trainer.tokens.text.cuts import PIECE_BYTES, WINDOW_BYTES, cut_bytes
from trainer.tokens.text.documents import Part, Text
from trainer.tokens.text.records import check_uncut, damaged, jsonl_texts, parquet_texts, then
from trainer.tokens.text.sources import open_source, shown

_BLOCK_BYTES = 1 << 18
_ZSTD_BLOCK_BYTES = 1 << 18
_ZSTD_STEP_BYTES = 1 << 10
"""Decompressed at once: each four of them may become 128 KiB, 32 MiB in all."""
MOST_WINDOW_BYTES = 1 << 28
"""Of zstandard, `--long=28`: as much memory as one file may take."""


def read_texts(part: Part, checked: bool = True) -> Iterator[Text | None]:
    """The documents of `part` in order; None stands for a blank line of JSONL.

    Args:
        part: What to read.
        checked: Whether plain text was found to be UTF-8 when its digest was taken.
    Raises:
        RequestError: The text is not what its name says; file and place are named.
        StepError: The file can't be read; it is named.
    """
    with _named_errors(part), open_source(part.location, part.remote) as file:
        if part.kind == "parquet":
            yield from parquet_texts(file, part)
            return
        blocks = _blocks(file, part)
        if part.compression or not checked:
            blocks = valid_blocks(blocks, part)
        blocks = without_mark(blocks, part)
        yield from (jsonl_texts if part.kind == "jsonl" else _text)(blocks, part)


def read_blocks(part: Part) -> Iterator[bytes]:
    """The bytes of a file that is no parquet: decompressed, UTF-8, without a byte order mark.

    Raises:
        RequestError, StepError: As read_texts does.
    """
    with _named_errors(part), open_source(part.location, part.remote) as file:
        yield from without_mark(valid_blocks(_blocks(file, part), part), part)


@contextlib.contextmanager
def _named_errors(part: Part) -> Iterator[None]:
    """What reading fails with, as errors that name the file."""
    try:
        yield
    except _damage(part.compression) as error:
        raise _unread(part, error) from error
    except OSError as error:
        raise StepError(f"{shown(part.location)} can't be read: {error}") from error


def first_bytes(part: Part, most_bytes: int) -> bytes:
    """The beginning of a file that is no parquet: its bytes, decompressed and else as they are.

    Raises:
        RequestError: It is damaged.
        StepError: It can't be read.
    """
    taken = bytearray()
    with _named_errors(part), open_source(part.location, part.remote) as file:
        for block in _blocks(file, part):
            taken += block
            if len(taken) >= most_bytes:
                break
    return bytes(taken[:most_bytes])


def _unread(part: Part, error: Exception) -> RequestError:
    """Why decompression ended: the file is damaged, or needs more memory than one may take."""
    if "too much memory" not in str(error):
        return damaged(part, error)
    return RequestError(
        f"dataset file {part.path} was compressed with a long window (more than "
        f"{MOST_WINDOW_BYTES >> 20} MiB, which reading it would take of memory). The file is "
        "whole. Compress it again, for instance with zstd --long=27."
    )


def _damage(compression: str) -> tuple[type[Exception], ...]:
    """What decompression raises for bytes that are not whole."""
    if compression == "zstd":
        import zstandard

        return (EOFError, zstandard.ZstdError)
    return (EOFError, zlib.error, gzip.BadGzipFile)


def _blocks(file: BinaryIO, part: Part) -> Iterator[bytes]:
    """The part's bytes, decompressed."""
    if part.compression == "gzip":
        unzipped = gzip.GzipFile(fileobj=file)
        while block := unzipped.read(_BLOCK_BYTES):
            yield block
    elif part.compression == "zstd":
        yield from _zstd_blocks(file)
    else:
        file.seek(part.start)
        left = part.stop - part.start
        while left:
            block = file.read(min(_BLOCK_BYTES, left))
            if not block:
                raise StepError(
                    f"{shown(part.location)} grew shorter while it was read. Run it again."
                )
            left -= len(block)
            yield block


def _zstd_blocks(file: BinaryIO) -> Iterator[bytes]:
    """Decompress frame after frame; unlike stream_reader, a frame cut short is an error."""
    import zstandard

    frame = None
    while stored := file.read(_ZSTD_BLOCK_BYTES):
        view = memoryview(stored)
        while view:
            step, view = view[:_ZSTD_STEP_BYTES], view[_ZSTD_STEP_BYTES:]
            while step:
                if frame is None:
                    opened = zstandard.ZstdDecompressor(max_window_size=MOST_WINDOW_BYTES)
                    frame = opened.decompressobj()
                if block := frame.decompress(step):  # none while a block's end is not there yet
                    yield block
                step = memoryview(b"")
                if frame.eof:
                    step, frame = memoryview(frame.unused_data), None
    if frame:
        raise EOFError("it ends in the middle of a frame")


def valid_blocks(blocks: Iterator[bytes], part: Part) -> Iterator[bytes]:
    """The same blocks; raises RequestError unless they are UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset, pending = part.start, 0
    for block in then(blocks, b""):  # the empty one: a character cut off by the end
        if pending or not block.isascii():
            try:
                decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise _not_utf8(part, offset - pending + error.start, error) from error
            pending = len(decoder.getstate()[0])
        offset += len(block)
        yield block


def without_mark(blocks: Iterator[bytes], part: Part) -> Iterator[bytes]:
    """The same blocks, without a byte order mark."""
    if not part.start:
        yield next(blocks, b"").removeprefix(codecs.BOM_UTF8)
    yield from blocks


def _not_utf8(part: Part, offset: int, error: UnicodeDecodeError) -> RequestError:
    got = error.object[error.start : error.start + 1].hex()
    return RequestError(
        f"dataset file {part.path} is not UTF-8 (got byte 0x{got} at offset {offset:,}"
        f"{' of the decompressed text' if part.compression else ''}). Text must be UTF-8. "
        "Convert it, for instance with iconv, or take it out of the dataset."
    )


def _text(blocks: Iterator[bytes], part: Part) -> Iterator[Text]:
    """One document, in parts where it is long and may be cut."""
    first = part.start == 0
    buffer = bytearray()
    searched = PIECE_BYTES  # no cut between here and there
    offset = part.start  # of the buffer
    for block in blocks:
        buffer += block
        while part.cut and len(buffer) >= searched + WINDOW_BYTES:
            cut = cut_bytes(bytes(buffer[searched : searched + WINDOW_BYTES]))
            if cut is None:
                # The windows overlap: a cut must not hide in a seam between two.
                searched += WINDOW_BYTES - 16
                continue
            yield Text(bytes(buffer[: searched + cut]), first, last=False)
            del buffer[: searched + cut]
            offset += searched + cut
            first, searched = False, PIECE_BYTES
        check_uncut(part, len(buffer), f"from offset {offset:,} on")
    yield Text(bytes(buffer), first, last=part.stop == part.whole)
