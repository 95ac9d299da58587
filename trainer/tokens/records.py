"""The texts of JSONL and parquet files: one document a line, or a row."""

import io
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, BinaryIO

from trainer.errors import RequestError
from trainer.tokens.cuts import MOST_UNCUT_BYTES, MOST_WHOLE_BYTES, PIECE_BYTES, cut_long_text
from trainer.tokens.documents import Part, Text
from trainer.tokens.sources import open_source

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

JOINT = "***\n"
"""Between the texts of one JSONL line."""
JSONL_FORMAT = 2
"""Raised when a line gives another text: what was made before is made again."""
_BLOCK_BYTES = 1 << 18


def damaged(part: Part, error: Exception) -> RequestError:
    return RequestError(
        f"dataset file {part.path} is damaged ({error}). "
        "It must be whole. Copy it again, or take it out of the dataset."
    )


def check_uncut(part: Part, size: int, place: str) -> None:
    """Raise RequestError for text that can't be encoded within the memory there is."""
    most = MOST_UNCUT_BYTES if part.cut else MOST_WHOLE_BYTES
    if size > most + PIECE_BYTES:
        why = "no place to cut it" if part.cut else "a tokenizer whose text may not be cut"
        raise RequestError(
            f"dataset file {part.path} has a text that is too long to encode in one piece (got "
            f"{size:,} bytes {place}, and {why}). At most {most >> 20} MiB fit into memory. "
            "Put line breaks or spaces between its words, or cut it into several documents."
        )


def then(blocks: Iterator[bytes], last: bytes) -> Iterator[bytes]:
    yield from blocks
    yield last


# --- JSONL ------------------------------------------------------------------------------


def jsonl_texts(blocks: Iterator[bytes], part: Part) -> Iterator[Text | None]:
    """Each line's document, in parts where it is long; None for a blank line."""
    for text in _line_texts(blocks, part):
        if text is None:
            yield None
        else:
            yield from _in_parts(text, part)


def check_lines(blocks: Iterator[bytes], part: Part) -> None:
    """Raise RequestError unless every line is blank or has a text."""
    for _ in _line_texts(blocks, part):
        pass


def _line_texts(blocks: Iterator[bytes], part: Part) -> Iterator[str | None]:
    rest: list[bytes] = []
    number = length = 0
    for block in then(blocks, b"\n"):
        *ended, last = block.split(b"\n")
        for line in ended:
            if rest:
                line = b"".join([*rest, line])
                rest, length = [], 0
            number += 1
            if line and not line.isspace():
                yield _line_text(line, part, number)
            elif line:
                yield None
        if last:
            rest.append(last)
            length += len(last)
            if length > MOST_WHOLE_BYTES:
                raise RequestError(
                    f"dataset file {part.path}:{_line_number(part, number + 1)} is too long (got "
                    f"more than {length:,} bytes). A line of JSONL has at most "
                    f"{MOST_WHOLE_BYTES >> 20} MiB. Cut it into several, or make it a .txt file."
                )


def _line_text(line: bytes, part: Part, number: int) -> str:
    """The text of one line: every string under the text's key, in order of appearance."""
    try:
        # As pairs: a key may stand twice in one object, and a dict would lose the first.
        found = list(_strings(json.loads(line, object_pairs_hook=_Pairs), part.text_field))
    except (ValueError, RecursionError) as error:
        raise RequestError(
            f"dataset file {part.path}:{_line_number(part, number)} is not JSON ({error}). "
            "Each line must be one JSON object. Mend the line, or take it out."
        ) from error
    if not found:
        raise RequestError(
            f"dataset file {part.path}:{_line_number(part, number)} has no text "
            f"(got {line[:60].decode(errors='replace')!r}). Each line must hold a string under "
            f"the key {part.text_field!r}. Mend the line, or name the key with text_field."
        )
    return JOINT.join(found)


class _Pairs(list):  # type: ignore[type-arg]
    """A JSON object as pairs, so that it is told from a list."""


def _strings(value: Any, key: str, under: bool = False) -> Iterator[str]:
    """Strings whose nearest key is `key`; a list's items stand under the list's key."""
    if isinstance(value, str):
        if under:
            yield value
    elif isinstance(value, _Pairs):
        for name, inner in value:
            yield from _strings(inner, key, name == key)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner, key, under)


def _line_number(part: Part, number: int) -> int:
    """Number in the file of the part's line `number`; reads what is before the part."""
    if not part.start:
        return number
    with open_source(part.location, part.remote) as file:
        before, left = 0, part.start
        while left and (block := file.read(min(_BLOCK_BYTES, left))):
            before += block.count(b"\n")
            left -= len(block)
    return before + number


def _in_parts(text: str, part: Part) -> Iterator[Text]:
    long = part.cut and len(text) > 2 * PIECE_BYTES
    parts = cut_long_text(text) if long else [text]
    for index, piece in enumerate(parts):
        encoded = _utf8(piece)
        check_uncut(part, len(encoded), f"that begin {piece[:40]!r}")
        yield Text(encoded, index == 0, index == len(parts) - 1)


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        # JSON can spell half of a surrogate pair, which is no character.
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


# --- parquet ----------------------------------------------------------------------------


def parquet_row_groups(part: Part) -> int:
    """How many parts a parquet file has; `part` is any of them."""
    import pyarrow

    try:
        with open_source(part.location, part.remote) as file:
            return _parquet(file).num_row_groups
    except pyarrow.ArrowInvalid as error:
        raise damaged(part, error) from error


def first_rows(part: Part, most_bytes: int) -> Any:
    """The first rows of a parquet file, of about so many bytes, as a table."""
    import pyarrow

    batches, taken = [], 0
    try:
        with open_source(part.location, part.remote) as file:
            table = _parquet(file)
            for batch in table.iter_batches(64):
                batches.append(batch)
                taken += batch.nbytes
                if taken >= most_bytes:
                    break
            return pyarrow.Table.from_batches(batches, table.schema_arrow)
    except pyarrow.ArrowInvalid as error:
        raise damaged(part, error) from error


def parquet_texts(file: BinaryIO, part: Part) -> Iterator[Text]:
    import pyarrow

    try:
        table = _parquet(file)
        names = table.schema_arrow.names
        if part.text_field not in names:
            raise RequestError(
                f"dataset file {part.path} has no column {part.text_field!r} "
                f"(got {', '.join(names)}). Name the column of the text with text_field."
            )
        groups = range(part.start, part.stop)
        row = 0
        for batch in table.iter_batches(64, row_groups=groups, columns=[part.text_field]):
            for value in batch.column(0).to_pylist():
                row += 1
                if not isinstance(value, str):
                    raise RequestError(
                        f"dataset file {part.path} has a row without text (got {value!r} in row "
                        f"{row} of row group {part.start}). Each row of {part.text_field!r} must "
                        "be a string. Mend the row, or take it out."
                    )
                yield from _in_parts(value, part)
    except pyarrow.ArrowInvalid as error:
        raise damaged(part, error) from error


def _parquet(file: BinaryIO) -> "ParquetFile":
    """The file, read page by page: by itself pyarrow loads a column's whole row group."""
    from pyarrow.parquet import ParquetFile

    buffered = io.BufferedReader(file) if isinstance(file, io.RawIOBase) else file
    return ParquetFile(buffered, buffer_size=1 << 20, pre_buffer=False)
