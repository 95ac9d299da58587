"""The records of JSONL, parquet and JSON arrays, as they are, each with its place in the file."""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from trainer.contract.errors import RequestError
from trainer.contract.json_text import parse_json
from trainer.tokens.chat.conversations import CHAT_KEYS, PAIRS, shape_of
from trainer.tokens.text.documents import Part, whole_part
from trainer.tokens.text.reading import first_bytes, read_blocks
from trainer.tokens.text.records import damaged, lines, parquet_file, rows_at_once
from trainer.tokens.text.sources import Source, open_source

_PEEKED_BYTES = (1 << 16, 1 << 20, 16 << 20)
"""Of a file, for its first record: more where it is longer."""
_MOST_ARRAY_BYTES = 1 << 30
"""Of a JSON array, which is read as a whole."""
_MORE_KEYS = ("tools", "system", "input", "history", "chosen", "rejected")
_SPACE = " \t\r\n"


class Record(NamedTuple):
    """One record."""

    value: Any
    place: str
    """For people: FILE:LINE, or FILE with the number of its record or row."""


def read_records(part: Part) -> Iterator[Record | None]:
    """The records of a file in order; None stands for a blank line of JSONL.

    Raises:
        RequestError: The file is damaged, or no JSON; it is named, with the place.
    """
    readers = {"parquet": _rows, "json": _array}
    yield from readers.get(part.kind, _lines)(part)


def _lines(part: Part) -> Iterator[Record | None]:
    for number, line in lines(read_blocks(part), part):
        if line and not line.isspace():
            place = f"{part.path}:{number}"
            yield Record(_parsed(line, place), place)
        elif line:
            yield None


def _parsed(line: bytes, place: str) -> Any:
    try:
        return parse_json(line)
    except (ValueError, RecursionError) as error:
        raise RequestError(
            f"dataset file {place} is not JSON ({error}). "
            "Each line must be one JSON object. Mend the line, or take it out."
        ) from error


def _array(part: Part) -> Iterator[Record]:
    content = bytearray()
    for block in read_blocks(part):
        content += block
        if len(content) > _MOST_ARRAY_BYTES:
            raise RequestError(
                f"dataset file {part.path} is too long for one JSON array (got more than "
                f"{_MOST_ARRAY_BYTES >> 20} MiB, and it is read as a whole). Write it as JSONL, "
                "one record a line."
            )
    text = content.decode()
    del content
    for number, value in enumerate(_elements(text, part), 1):
        yield Record(value, f"{part.path}, record {number}")


def _elements(text: str, part: Part) -> Iterator[Any]:
    """The elements of a JSON array, one after another; an object alone is one record."""
    decoder = json.JSONDecoder()
    at = _after_space(text, 0)
    is_array = text[at : at + 1] == "["
    at = _after_space(text, at + is_array)
    while is_array is False or text[at : at + 1] != "]":
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            raise _no_json(part, str(error)) from error
        yield value
        at = _after_space(text, at)
        if not is_array:
            break
        if text[at : at + 1] == ",":
            at = _after_space(text, at + 1)
        elif text[at : at + 1] != "]":
            raise _no_json(part, f"no comma after the record that ends at character {at:,}")
    if _after_space(text, at + is_array) < len(text):
        raise _no_json(part, f"something follows its end at character {at:,}")


def _no_json(part: Part, reason: str) -> RequestError:
    return RequestError(
        f"dataset file {part.path} is no JSON array ({reason}). "
        "A .json file is one array of records. Mend it, or write it as JSONL."
    )


def _after_space(text: str, at: int) -> int:
    while text[at : at + 1] and text[at] in _SPACE:
        at += 1
    return at


def _rows(part: Part) -> Iterator[Record]:
    import pyarrow

    try:
        with open_source(part.location, part.remote) as file:
            table = parquet_file(file, part)
            wanted = {*CHAT_KEYS, *(key for pair in PAIRS for key in pair), *_MORE_KEYS}
            names = [name for name in table.schema_arrow.names if name in wanted]
            number = 0
            for batch in table.iter_batches(rows_at_once(table), columns=names):
                for row in batch.to_pylist():
                    number += 1
                    yield Record(_without_nulls(row), f"{part.path}, row {number}")
    except pyarrow.ArrowInvalid as error:
        raise damaged(part, error) from error


def _without_nulls(value: Any) -> Any:
    """Columns of structures have every key in every row: null is what a record lacks."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


# --- what a file's records are ----------------------------------------------------------


def first_shape(source: Source, text_field: str = "text") -> str:
    """What the records of a file are, by the keys of its first one: text, chat or completion.

    Returns:
        Empty for a file without any.
    Raises:
        RequestError: The file is damaged.
    """
    if not source.size:
        return ""
    if source.kind == "parquet":
        return _shape_of_columns(whole_part(source, "", text_field))
    if source.kind == "jsonl" or _is_array(source):
        return _peeked_shape(source, text_field)
    return "text"


def _is_array(source: Source) -> bool:
    """A single file is read as plain text whatever its name, unless its records are told."""
    return source.kind == "json" or source.path.lower().endswith(".json")


def shape_of_line(line: bytes, text_field: str) -> str:
    """What the record of a line is; of a line that is no JSON its reader says what is wrong."""
    try:
        return shape_of(parse_json(line), text_field)
    except (ValueError, RecursionError):
        return "text"


def _peeked_shape(source: Source, text_field: str) -> str:
    part = whole_part(source, "", text_field)
    for most in _PEEKED_BYTES:
        begin = first_bytes(part, most)
        text = begin.decode("utf-8-sig", "replace").lstrip()
        record = _first_object(text)
        if record is not None:
            return shape_of(record, text_field)
        if len(begin) < most:
            return "text" if text else ""
    return "text"


def _first_object(text: str) -> Any:
    """The first object of JSONL or of an array; None where it is not whole in the text."""
    try:
        return json.JSONDecoder().raw_decode(text.removeprefix("[").lstrip())[0]
    except (ValueError, RecursionError):
        return None


def _shape_of_columns(part: Part) -> str:
    import pyarrow

    try:
        with open_source(part.location, part.remote) as file:
            schema = parquet_file(file, part).schema_arrow
    except pyarrow.ArrowInvalid as error:
        raise damaged(part, error) from error
    names = set(schema.names)
    if part.text_field in names:
        return "text"
    if any(key in names and _holds_turns(schema.field(key).type) for key in CHAT_KEYS):
        return "chat"
    return "completion" if any(set(pair) <= names for pair in PAIRS) else "text"


def _holds_turns(kind: Any) -> bool:
    import pyarrow

    is_list = pyarrow.types.is_list(kind) or pyarrow.types.is_large_list(kind)
    if not is_list or not pyarrow.types.is_struct(kind.value_type):
        return False
    fields = {field.name for field in kind.value_type}
    return "role" in fields or {"from", "value"} <= fields
