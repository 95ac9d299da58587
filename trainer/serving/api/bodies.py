"""A request's JSON body as a checked dataclass, or a sentence for each thing wrong with it."""

import difflib
import json
import math
from collections.abc import Collection, Mapping
from typing import Annotated, Any, TypeVar

from annotated_types import Ge, Gt, Le
from pydantic import TypeAdapter, ValidationError

Body = TypeVar("Body")
MAX_FIELDS = 1024  # of one object in a body: each that is wrong costs a sentence
MAX_SHOWN = 80  # characters of a wrong value, or of a field's name
MAX_PROBLEMS = 8  # that one answer tells
# The ranges within which the engine computes sensible numbers, in the fields of every route.
MAX_INTEGER = 2**31 - 1
TokenCount = Annotated[int, Gt(0), Le(MAX_INTEGER)]
TokenCountOrZero = Annotated[int, Ge(0), Le(MAX_INTEGER)]
RepetitionPenalty = Annotated[float, Ge(0.01), Le(100)]


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

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.status, self.message, self.param, self.headers)


def read_json(body: bytes) -> dict[str, Any]:
    """The JSON object in a request's body, whatever its content type says.

    Raises:
        ApiError: 400. It is not JSON, or it holds a number or a character that does not exist.
    """
    try:
        given = json.loads(body, parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, nested without end
        raise ApiError(400, f"the body is not JSON ({error}).") from error
    _refuse_half_characters(given)
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
            field = _cut(field)
            # A field of several types has a problem with each; one sentence will do.
            if field not in problems:
                problems[field] = _sentence(detail, field, known, value)
        told = [*problems.values()][:MAX_PROBLEMS]
        if left_out := len(problems) - len(told):
            told.append(f"{left_out} more fields are wrong.")
        raise ApiError(400, " ".join(told), next(iter(problems))) from error


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
    return f"{field} {expected} (got {shown(value)})."


def shown(value: Any) -> str:
    """A wrong value for a message, cut to a readable length."""
    # Not the whole value's representation, which may have millions of characters.
    if isinstance(value, str | list):
        value = value[: MAX_SHOWN + 1]
    return _cut(repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


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
            return _cut(name), len(value)
        within = value.items() if isinstance(value, dict) else ((name, one) for one in value)
        pending += [
            (key, one) for key, one in within if isinstance(one, dict | list) and key not in apart
        ]
    return None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"{shown(digits)} is larger than any number can be")
    return number


def _refuse_half_characters(given: Any) -> None:
    """JSON can write half of a surrogate pair, which no text, tokenizer or answer can hold."""
    try:
        json.dumps(given, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ApiError(400, "the body is nested too deeply. Send a flat object.") from error
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise ApiError(
            400,
            f"the body holds half of a character (got \\u{ord(half):04x}, a surrogate without its "
            "pair). Send whole characters.",
        ) from error
