"""The texts of JSONL and parquet files: one document a line, or a row."""

import io
import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from trainer.contract.errors import RequestError
from trainer.tokens.text.cuts import MOST_UNCUT_BYTES, MOST_WHOLE_BYTES, PIECE_BYTES, cut_long_text
from trainer.tokens.text.documents import Part, Text
from trainer.tokens.text.sources import open_source

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

JOINT = "***\n"
"""Between the texts of one JSONL line."""
JSONL_FORMAT = 2
"""Raised when a line gives another text: what was made before is made again."""
AS_CHAT = (
    "Chats are read where every record of the file has its turns under 'messages' or "
    "'conversations', completions under 'prompt' and 'completion' or 'instruction' and 'output': "
    "see data.shape."
)
_BLOCK_BYTES = 1 << 18
_ROWS = 8  # of parquet, in memory at once
_DENSE = 30  # times smaller than its content: text is packed by 3 to 10
_BOMB = 100
_MOST_ENTRIES_BYTES = 1 << 20  # of a dictionary, compressed; writers stop at 1 MiB before that
_MOST_EXPANDED_BYTES = 256 << 20


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


def check_lines(
    blocks: Iterator[bytes], part: Part, is_text: Callable[[bytes], bool] = lambda line: True
) -> None:
    """Raise RequestError unless every line is blank or has a text.

    Args:
        is_text: Asked of the first line that is not blank: whether the file's records are texts.
            Those of others are checked when they are read.
    """
    asked = False
    for number, line in lines(blocks, part):
        if not line or line.isspace():
            continue
        if not asked and not is_text(line):
            return
        asked = True
        _line_text(line, part, number)


def _line_texts(blocks: Iterator[bytes], part: Part) -> Iterator[str | None]:
    for number, line in lines(blocks, part):
        if line and not line.isspace():
            yield _line_text(line, part, number)
        elif line:
            yield None


def lines(blocks: Iterator[bytes], part: Part) -> Iterator[tuple[int, bytes]]:
    """Each line of JSONL with its number in the part, from 1; blank ones too."""
    rest: list[bytes] = []
    number = length = 0
    for block in then(blocks, b"\n"):
        *ended, last = block.split(b"\n")
        for line in ended:
            if rest:
                line = b"".join([*rest, line])
                rest, length = [], 0
            number += 1
            yield number, line
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
        record = json.loads(line, object_pairs_hook=_Pairs)
        found = list(_strings(record, part.text_field))
        told = any(mark in line for mark in _MARKS)  # looking costs as much as reading the line
        kind = _kind_of_record(record, part.text_field) if told else None
    except (ValueError, RecursionError) as error:
        raise RequestError(
            f"dataset file {part.path}:{_line_number(part, number)} is not JSON ({error}). "
            "Each line must be one JSON object. Mend the line, or take it out."
        ) from error
    if kind and (kind.inside or not found):
        raise RequestError(
            f"dataset file {part.path}:{_line_number(part, number)} {kind.words}. As plain text "
            f"it would lose {kind.loses}, so it is not read. {AS_CHAT} Or write each record as one "
            f"string under the key {part.text_field!r}, as the model is to see it."
        )
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


class _Kind(NamedTuple):
    """What kind a record is, where it is not plain text."""

    words: str
    loses: str
    inside: bool
    """Whether the text's key stands inside of it."""


_TURNS = (("role", "content"), ("role", "parts"), ("role", "text"), ("from", "value"))
_MARKS = (b'"role"', b'"from"', b'"prompt"', b'"instruction"')
_PAIRS = (("prompt", "completion"), ("prompt", "response"), ("instruction", "output"))


def _kind_of_record(record: Any, key: str) -> _Kind | None:
    """Whether a record is a conversation, or a question with its answer; else None."""
    for name, turns in _lists(record, ""):
        roles = [_role(turn) for turn in turns]
        if roles and all(roles):
            inside = name == key or any(True for turn in turns for _ in _strings(turn, key))
            told = ", ".join(dict.fromkeys(str(role) for role in roles[:4]))
            words = f"is a chat record (got {name!r} with turns of {told})"
            return _Kind(words, "its roles", inside)
    names = dict(record).keys() if isinstance(record, _Pairs) else ()
    for pair in _PAIRS:
        if set(pair) <= set(names) and key not in names:
            words = f"is a record of question and answer (got keys {' and '.join(pair)})"
            return _Kind(words, "which of the two is trained", False)
    return None


def _role(turn: Any) -> Any:
    """Who speaks in one turn of a conversation; None where it is no turn."""
    fields = dict(turn) if isinstance(turn, _Pairs) else {}
    return next((fields[who] for who, what in _TURNS if who in fields and what in fields), None)


def _lists(value: Any, name: str) -> Iterator[tuple[str, list[Any]]]:
    """Every list of a record, with the key that it stands under."""
    if isinstance(value, _Pairs):
        for key, inner in value:
            yield from _lists(inner, key)
    elif isinstance(value, list):
        yield name, value
        for inner in value:
            yield from _lists(inner, name)


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
            return parquet_file(file, part).num_row_groups
    except pyarrow.ArrowInvalid as error:
        raise damaged(part, error) from error


def first_rows(part: Part, most_bytes: int) -> Any:
    """The first rows of a parquet file, of about so many bytes, as a table."""
    import pyarrow

    batches, taken = [], 0
    try:
        with open_source(part.location, part.remote) as file:
            table = parquet_file(file, part)
            for batch in table.iter_batches(rows_at_once(table)):
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
        table = parquet_file(file, part)
        names = table.schema_arrow.names
        if chat := _chat_column(table.schema_arrow, part.text_field):
            raise RequestError(
                f"dataset file {part.path} holds chat records (got column {chat!r}). As plain "
                f"text they would lose their roles, so they are not read. {AS_CHAT} Or write each "
                f"one as one string into a column {part.text_field!r}, as the model is to see it."
            )
        if part.text_field not in names:
            raise RequestError(
                f"dataset file {part.path} has no column {part.text_field!r} "
                f"(got {', '.join(names)}). Name the column of the text with text_field."
            )
        groups = range(part.start, part.stop)
        row = 0
        size = rows_at_once(table)
        for batch in table.iter_batches(size, row_groups=groups, columns=[part.text_field]):
            for cell in batch.column(0):
                value, row = cell.as_py(), row + 1
                if not isinstance(value, str):
                    raise RequestError(
                        f"dataset file {part.path} has a row without text (got {value!r} in row "
                        f"{row} of row group {part.start}). Each row of {part.text_field!r} must "
                        "be a string. Mend the row, or take it out."
                    )
                yield from _in_parts(value, part)
    except pyarrow.ArrowInvalid as error:
        raise damaged(part, error) from error


def _chat_column(schema: Any, text_field: str) -> str | None:
    """The column of conversations, where they stand for the text."""
    import pyarrow

    for column in schema:
        turns = column.type.value_type if pyarrow.types.is_list(column.type) else None
        if turns is None or not pyarrow.types.is_struct(turns):
            continue
        fields = {field.name for field in turns}
        is_text = column.name == text_field or text_field not in schema.names
        if is_text and any(fields >= set(pair) for pair in _TURNS):
            return str(column.name)
    return None


def _columns(table: "ParquetFile") -> Iterator[Any]:
    """What the file says of each column of each row group."""
    for group in range(table.num_row_groups):
        row_group = table.metadata.row_group(group)
        yield from (row_group.column(index) for index in range(row_group.num_columns))


def rows_at_once(table: "ParquetFile") -> int:
    """Rows that are in memory together.

    A dictionary's entry is stored once and may be the value of every row. Its size is not
    told, so where the dictionary is large, or the file is packed as no text is, rows come
    one by one, which takes longer.
    """
    for column in _columns(table):
        packed = column.total_uncompressed_size > _DENSE * column.total_compressed_size
        begin = column.dictionary_page_offset
        entries = 0 if begin is None else column.data_page_offset - begin
        if packed or entries > _MOST_ENTRIES_BYTES:
            return 1
    return _ROWS


def _refuse_bomb(table: "ParquetFile", part: Part) -> None:
    """Raise RequestError for a file that is made to fill the memory."""
    for column in _columns(table):
        size, stored = column.total_uncompressed_size, max(1, column.total_compressed_size)
        if size > _MOST_EXPANDED_BYTES and size > _BOMB * stored:
            raise RequestError(
                f"dataset file {part.path} is a decompression bomb (got column "
                f"{column.path_in_schema!r}, whose {stored:,} bytes become {size:,}, "
                f"{size // stored:,} times as many). Text becomes at most {_BOMB} times as "
                "large. Take the file out of the dataset."
            )


def parquet_file(file: BinaryIO, part: Part) -> "ParquetFile":
    """The file, read page by page: by itself pyarrow loads a column's whole row group."""
    table = _open_parquet(file)
    _refuse_bomb(table, part)
    return table


def _open_parquet(file: BinaryIO) -> "ParquetFile":
    from pyarrow.parquet import ParquetFile

    buffered = io.BufferedReader(file) if isinstance(file, io.RawIOBase) else file
    return ParquetFile(buffered, buffer_size=1 << 20, pre_buffer=False)
