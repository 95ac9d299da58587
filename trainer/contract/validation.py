"""Dataclasses from what a user typed or wrote: every problem of it in one error.

An unknown key, a wrong type and a value out of range are reported all at once, in the
form that trainer/contract/errors.py describes.
"""

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from trainer.contract.addresses import masked
from trainer.contract.errors import RequestError
from trainer.contract.json_text import parse_json
from trainer.contract.rules_in_words import one_for_each_place, rule_in_words

Config = TypeVar("Config")


def load_parameters(cls: type[Config], given: Mapping[str, Any]) -> Config:
    """Make `cls` from what a user typed; numbers may come as strings.

    Raises:
        RequestError: With every problem there is, each naming its parameter.
    """
    return _validated(cls, TypeAdapter(cls).validate_python, dict(given))


def load_json(cls: type[Config], text: str, what: str) -> Config:
    """Make `cls` from JSON.

    Args:
        what: What the text is, for the error where it is not JSON.
    Raises:
        RequestError: With every problem there is, each naming its key.
    """
    try:
        parse_json(text)
    except ValueError as error:
        raise RequestError(f"{what} is not JSON ({error})") from error
    return _validated(cls, TypeAdapter(cls).validate_json, text)


def _validated(cls: type[Config], validate: Callable[[Any], Config], given: Any) -> Config:
    try:
        return validate(given)
    except ValidationError as error:
        found = [
            line
            for detail in one_for_each_place(error.errors())
            for line in _sentences(detail, cls)
        ]
        raise RequestError(*found) from error


def _sentences(detail: Mapping[str, Any], cls: Any) -> list[str]:
    """The problems of one error of pydantic; a topic's own check may report several."""
    lines = detail["msg"].splitlines()
    if detail["type"] != "value_error" or len(lines) < 2:
        return [_sentence(detail, cls)]
    return [_sentence({**detail, "msg": line}, cls) for line in lines]


def _sentence(detail: Mapping[str, Any], cls: Any) -> str:
    """One problem found by pydantic, in that form."""
    # pydantic names the dataclass too where a nested value is wrong; users never see that name.
    name = ".".join(str(part) for part in detail["loc"]) or "the request"
    if detail["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{name} is not a parameter." + _nearest(cls, detail["loc"])
    if detail["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{name} is required."
    if detail["type"] == "secret":
        return (
            f"{name} {detail['msg']}. It is the name of a Kubernetes Secret, or here of an "
            "environment variable or Prefect Secret block, that holds the key."
        )
    if detail["type"] == "credentials":
        return (
            f"{name} {detail['msg']}. Name the address without it, and put the credentials into a "
            "Secret that cluster.secrets names, or here into environment variables "
            "(AWS_ACCESS_KEY_ID, ...)."
        )
    got = masked(detail["input"]) if isinstance(detail["input"], str) else detail["input"]
    if detail["type"] in ("dataclass_type", "dataclass_exact_type", "json_invalid"):
        return f"{name} is no JSON object (got {got!r}). {_example(cls, detail['loc'])}"
    if detail["type"] == "spelling":
        return f"{name} {detail['msg']} (got {got!r}). {detail['ctx']['remedy']}"
    expected = rule_in_words(detail)
    if "(got " in expected:  # a topic's own check says it all, and may have a key to hide
        return f"{name}.{expected}" if detail["loc"] else expected
    shown = "a value that is not shown" if _may_hold_keys(detail["loc"]) else repr(got)
    return f"{name} {expected} (got {shown})."


def _may_hold_keys(loc: Sequence[int | str]) -> bool:
    """Whether a value at that place is the name of a Secret, or a key that was put there."""
    return any("secret" in str(part) or part == "environment" for part in loc)


def _nearest(cls: Any, loc: Sequence[int | str]) -> str:
    """A question that names the known key nearest to the one at `loc`, or nothing."""
    *above, wrong = map(str, loc)
    # Parameters know the names that another workflow has for them.
    hint_for = getattr(cls, "hint_for", None)
    if hint_for and not above and (hint := hint_for(wrong)):
        return f" {hint}"
    near = difflib.get_close_matches(wrong, _keys(cls, above), n=1, cutoff=0.5)
    return f" Did you mean {'.'.join([*above, *near])}?" if near else ""


def _example(cls: Any, loc: Sequence[int | str]) -> str:
    if not (keys := _keys(cls, loc)):
        return "Give names and values in braces."
    return f'Give one like {{"{keys[0]}": ...}}, with any of {", ".join(keys)}.'


def _keys(cls: Any, loc: Sequence[int | str]) -> list[str]:
    """The names that the typed object at `loc` below `cls` takes; none where it is no such."""
    for name in loc:
        hint = get_type_hints(cls).get(str(name))
        members = (hint, *get_args(hint))  # `Topic | None` is one of them
        cls = next((member for member in members if dataclasses.is_dataclass(member)), None)
        if cls is None:
            return []
    return list(get_type_hints(cls))
