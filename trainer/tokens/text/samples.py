"""Samples of a corpus, to prove an encoder on."""

from collections.abc import Sequence

import numpy as np

from trainer.contract.errors import StepError
from trainer.tokens.text.documents import whole_part
from trainer.tokens.text.reading import read_texts
from trainer.tokens.text.records import parquet_row_groups
from trainer.tokens.text.sanitize import mend_encoding, sanitize
from trainer.tokens.text.sources import Source, open_source, shown

_SAMPLE_BYTES = 1 << 16
_SLICE_BYTES = 1 << 12
_MOST_SKIPPED_BYTES = 8 << 20
"""Of compressed text, before a sample: reaching a place costs reading all that is before it."""
_MOST_PACKED = 8
"""Bytes of text that a compressed byte stands for: places spread over all of a short file."""


def read_samples(
    places: Sequence[tuple[Source, int]], recipe_sanitize: bool, text_field: str
) -> list[str]:
    """Stretches of the corpus to prove an encoder on: 4 kB at each place, and the oddest 4 near."""
    samples = []
    for source, offset in places:
        try:
            window = _window(source, offset, text_field)
        except OSError as error:
            raise StepError(f"{shown(source.location)} can't be read: {error}") from error
        slices = [window[i : i + _SLICE_BYTES] for i in range(0, len(window), _SLICE_BYTES)]
        for piece in {*slices[:1], max(slices, key=_strangeness, default=b"")}:
            text = piece.decode("utf-8", errors="ignore").encode()
            samples.append(mend_encoding(sanitize(text) if recipe_sanitize else text).decode())
    return sorted(samples)


def _strangeness(text: bytes) -> int:
    codes = np.frombuffer(text, np.uint8)
    return int(((codes >= 0x80) | (codes < 0x20) & (codes != 0x0A)).sum())


def _window(source: Source, offset: int, text_field: str) -> bytes:
    """About 64 kB of text at `offset`: in JSONL from the next line on, in parquet its row group."""
    if source.kind == "text" and not source.compression:
        with open_source(source.location, source.remote) as file:
            file.seek(offset)
            return file.read(_SAMPLE_BYTES)
    part, skip = whole_part(source, "", text_field), 0
    if source.compression:  # which can't be entered in the middle
        skip = offset * _MOST_PACKED % _MOST_SKIPPED_BYTES
    elif source.kind == "jsonl":
        part = part._replace(start=_line_start(source, offset))
    else:
        groups = parquet_row_groups(part)
        number = offset * groups // source.size
        part = part._replace(start=number, stop=min(number + 1, groups))
    found = bytearray()
    for text in read_texts(part):
        found += text.text if text else b""
        if len(found) >= skip + _SAMPLE_BYTES:
            break
    begin = skip % max(1, len(found) - _SAMPLE_BYTES)  # of a short one, all was read
    return bytes(found[begin : begin + _SAMPLE_BYTES])


def _line_start(source: Source, offset: int) -> int:
    """Where the first line after `offset` begins; the first of all where none does."""
    if not offset:
        return 0
    with open_source(source.location, source.remote) as file:
        file.seek(offset)
        while block := file.read(_SAMPLE_BYTES):
            if (found := block.find(b"\n")) >= 0:
                begin = offset + found + 1
                return begin if begin < source.size else 0
            offset += len(block)
    return 0
