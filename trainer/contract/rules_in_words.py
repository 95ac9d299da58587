"""What a value should be, in words, for each kind of error that pydantic finds."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_KINDS = {
    "string_type": "should be text",
    "bool_type": "should be true or false",
    "bool_parsing": "should be true or false",
    "int_type": "should be a whole number",
    "int_parsing": "should be a whole number",
    "int_parsing_size": "should be a whole number of fewer digits",
    "int_from_float": "should be a whole number",
    "float_type": "should be a number",
    "float_parsing": "should be a number",
    "list_type": "should be a list",
    "tuple_type": "should be a list",
    "dict_type": "should be names and values in braces",
    "model_type": "should be names and values in braces",
    "string_unicode": "should be text in UTF-8",
}
# What pydantic adds to the place of an error in a value that may be of several types.
_ONE_OF_TYPES = re.compile(r"(list|dict|tuple|literal)\[.*\]")
_SCALARS = frozenset({"str", "int", "float", "bool"})
_LENGTHS = {
    "string_too_short": ("min_length", "at least", "character"),
    "string_too_long": ("max_length", "at most", "character"),
    "too_short": ("min_length", "at least", "item"),
    "too_long": ("max_length", "at most", "item"),
}


def one_for_each_place(details: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The errors, with those of one value that may be of several types made one."""
    several: dict[tuple[int | str, ...], dict[str, Any]] = {}
    made: list[Mapping[str, Any]] = []
    details = list(details)
    scalars = Counter(detail["loc"][:-1] for detail in details if _is_of_scalar(detail))
    for detail in details:
        place = _place(detail["loc"][:-1] if scalars[detail["loc"][:-1]] > 1 else detail["loc"])
        if place == detail["loc"]:
            made.append(detail)
        elif place in several:
            words = rule_in_words(detail).removeprefix("should be ")
            several[place]["msg"] = f"{several[place]['msg']}, or {words}"
        else:
            several[place] = {**detail, "loc": place, "msg": rule_in_words(detail)}
            if detail["type"] in (*_KINDS, "literal_error"):
                several[place]["type"] = "several_types"
            made.append(several[place])
    return made


def _place(loc: Sequence[int | str]) -> tuple[int | str, ...]:
    """The place as a user knows it."""
    return tuple(part for part in loc if not _ONE_OF_TYPES.fullmatch(str(part)))


def _is_of_scalar(detail: Mapping[str, Any]) -> bool:
    return bool(detail["loc"]) and detail["loc"][-1] in _SCALARS


def rule_in_words(detail: Mapping[str, Any]) -> str:
    """The rule that was broken, to follow the name of what broke it.

    Args:
        detail: One error as pydantic lists it. A rule of our own says itself what it is.
    """
    kind = detail["type"]
    if kind in _LENGTHS:
        key, bound, unit = _LENGTHS[kind]
        unit = "character" if isinstance(detail["input"], str) else unit
        length = detail["ctx"][key]
        return f"should have {bound} {length} {unit}{'' if length == 1 else 's'}"
    return _KINDS.get(kind) or detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
