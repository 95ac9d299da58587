"""A request's JSON body as a checked dataclass, or a sentence for each thing wrong with it."""

import difflib
import json
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

Body = TypeVar("Body")
MAX_FIELDS = 1024  # of one object in a body: each that is wrong costs a sentence
MAX_SHOWN = 80  # characters of a wrong value


class ApiError(Exception):
    """What a client gets instead of an answer: a status, a sentence, the field it is about."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.headers = dict(headers or {})


def read_json(body: bytes) -> dict[str, Any]:
    """The JSON object in a request's body, whatever its content type says."""
    try:
        given = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, nested without end
        raise ApiError(400, f"the body is not JSON ({error}).") from error
    if not isinstance(given, dict):
        raise ApiError(400, f"the body is not a JSON object (got {type(given).__name__}).")
    return given


def checked_body(cls: type[Body], given: Any) -> Body:
    """`given` as `cls`.

    Raises:
        ApiError: 400 with every problem there is, the first one's field as `param`.
    """
    if crowd := crowd_in(given, MAX_FIELDS, dict):
        name, count = crowd
        limit = f"An object may have {MAX_FIELDS}. Send fewer."
        raise ApiError(400, f"{name} has too many fields (got {count}). {limit}", name)
    try:
        # By way of JSON, where "strict" means JSON's own types: an integer is a number,
        # a list is a tuple, and the text "5" is no number.
        return TypeAdapter(cls).validate_json(json.dumps(given))
    except ValidationError as error:
        known = list(cls.__dataclass_fields__)  # type: ignore[attr-defined]
        problems: dict[str, str] = {}
        for detail in error.errors():
            field, value = _place(detail, given)
            # A field of several types has a problem with each; one sentence will do.
            if field not in problems:
                problems[field] = _sentence(detail, field, known, value)
        raise ApiError(400, " ".join(problems.values()), next(iter(problems))) from error


def _place(detail: Mapping[str, Any], given: Any) -> tuple[str, Any]:
    """Where in the body the problem is, as `messages[0].content`, and what is there."""
    name, value = "", given
    for part in detail["loc"]:
        if isinstance(value, list) and isinstance(part, int):
            name, value = f"{name}[{part}]", value[part]
        elif isinstance(value, dict) and (part in value or detail["type"].startswith("missing")):
            name, value = f"{name}.{part}" if name else str(part), value.get(part)
        else:
            break  # what follows is the name of one of the field's types
    return name or "the body", value


def _sentence(detail: Mapping[str, Any], field: str, known: list[str], value: Any) -> str:
    if detail["type"] == "unexpected_keyword_argument":
        near = difflib.get_close_matches(field, known, n=1, cutoff=0.5)
        return f"{field} is not a parameter." + (f" Did you mean {near[0]}?" if near else "")
    if detail["type"].startswith("missing"):
        return f"{field} is required."
    expected = detail["msg"].removeprefix("Input ")
    return f"{field} {expected} (got {_shown(value)})."


def _shown(value: Any) -> str:
    # Not the whole value's representation, which may have millions of characters.
    if isinstance(value, str | list):
        value = value[: MAX_SHOWN + 1]
    got = repr(value)
    return got if len(got) <= MAX_SHOWN else got[: MAX_SHOWN - 3] + "..."


def crowd_in(
    given: Any, most: int, *kinds: type, apart: Collection[str] = ()
) -> tuple[str, int] | None:
    """Where the first value of those kinds with more than `most` entries is, and its size.

    Args:
        given: Parsed JSON.
        kinds: dict, list, or both.
        apart: Fields that are not looked at.
    """
    pending = [("the body", given)] if isinstance(given, dict | list) else []
    while pending:
        name, value = pending.pop()
        if isinstance(value, kinds) and len(value) > most:
            return name, len(value)
        within = value.items() if isinstance(value, dict) else ((name, one) for one in value)
        pending += [
            (key, one) for key, one in within if isinstance(one, dict | list) and key not in apart
        ]
    return None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")
