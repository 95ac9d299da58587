"""Read JSON from the volume, so that a damaged file is named and stops nothing else.

A file may be empty, torn, of another kind, nested without end, or a folder may have its
name. Each of these is one DamagedError. Importing this costs pydantic alone.
"""

import functools
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from trainer.contract.errors import DamagedError
from trainer.contract.json_text import parse_json

OBJECT = dict[str, Any]


def read_object(path: Path, kind: Any = OBJECT) -> Any:
    """The JSON object in a file, or None where there is no such file.

    Args:
        path: The file.
        kind: The type of the object, for pydantic.
    Raises:
        DamagedError: The file holds something else; the message is `NAME is damaged (REASON)`.
    """
    content = read_bytes(path)
    return None if content is None else _parsed(content, kind, path.name)


def readable_object(path: Path, kind: Any = OBJECT) -> Any:
    """The JSON object in a file, or None where the file is missing or damaged."""
    try:
        return read_object(path, kind)
    except DamagedError:
        return None


def read_lines(path: Path, kind: Any = OBJECT) -> Iterator[Any]:
    """The good lines of a .jsonl file, in order; none where the file is missing or damaged."""
    return (line for line in all_lines(path, kind) if line is not None)


def all_lines(path: Path, kind: Any = OBJECT) -> Iterator[Any]:
    """Each line of a .jsonl file: None for a damaged one. A last line without its end is left out.

    A process that was killed leaves half a line at the end, and the next one cuts it off.
    """
    try:
        content = read_bytes(path) or b""
    except DamagedError:
        return
    for line in content.split(b"\n")[:-1]:
        yield parsed_line(line, kind)


def parsed_line(line: bytes, kind: Any = OBJECT) -> Any:
    """The object of a line; None for a damaged one."""
    try:
        return _parsed(line, kind, "line")
    except DamagedError:
        return None


def damage_of_lines(path: Path, kind: Any = OBJECT) -> str | None:
    """What is wrong with a .jsonl file, as DamagedError says it; None where nothing is."""
    try:
        read_bytes(path)
    except DamagedError as error:
        return str(error)
    damaged = [number for number, line in enumerate(all_lines(path, kind), 1) if line is None]
    if not damaged:
        return None
    more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
    return f"{path.name} is damaged (line {damaged[0]}{more})"


def read_bytes(path: Path) -> bytes | None:
    """The content of an ordinary file; None where there is none; raises DamagedError."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for, for ever
            raise DamagedError(f"{path.name} is damaged (it is a folder, pipe or device)")
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DamagedError(f"{path.name} is damaged ({error.strerror})") from error


def _parsed(content: bytes, kind: Any, name: str) -> Any:
    """The object that `content` is, checked, with every key that it has."""
    if not content.strip():
        raise DamagedError(f"{name} is damaged (it is empty)")
    try:
        found = parse_json(content)
        _adapter(kind).validate_python(found)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise DamagedError(f"{name} is damaged ({where or 'it'}: {first['msg']})") from error
    except RecursionError as error:
        raise DamagedError(f"{name} is damaged (nested too deep)") from error
    except ValueError as error:
        raise DamagedError(f"{name} is damaged ({error})") from error
    return found


@functools.cache  # building one takes milliseconds
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
