"""Dataclasses from what a user typed or wrote: every problem of it in one error.

An unknown key, a wrong type and a value out of range are reported all at once, in the
form that trainer/errors.py describes.
"""

import difflib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar, get_type_hints

from pydantic import TypeAdapter, ValidationError

from trainer.errors import RequestError
from trainer.parameter_types import DNS_LABEL

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
        json.loads(text)
    except json.JSONDecodeError as error:
        raise RequestError(f"{what} is not JSON ({error})") from error
    return _validated(cls, TypeAdapter(cls).validate_json, text)


def _validated(cls: type[Config], validate: Callable[[Any], Config], given: Any) -> Config:
    try:
        return validate(given)
    except ValidationError as error:
        known = list(get_type_hints(cls))
        raise RequestError(*(_sentence(detail, known) for detail in error.errors())) from error


def _sentence(detail: Mapping[str, Any], known: Iterable[str]) -> str:
    """One problem found by pydantic, in that form."""
    # pydantic names the dataclass too where a nested value is wrong; users never see that name.
    name = ".".join(str(part) for part in detail["loc"]) or "the request"
    if detail["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
        return f"{name} is not a parameter." + (f" Did you mean {near[0]}?" if near else "")
    if detail["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{name} is required."
    if detail["type"] == "secret":
        return (
            f"{name} {detail['msg']}. It is the name of a Kubernetes Secret, or here of an "
            "environment variable or Prefect Secret block, that holds the key."
        )
    got = detail["input"]
    if detail.get("ctx", {}).get("pattern") == DNS_LABEL:
        return (
            f"{name} is not a DNS label of at most 40 characters (got {got!r}). "
            "Use lower-case letters, digits and '-', beginning and ending with a letter or digit."
        )
    expected = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if "(got " in expected:  # a topic's own check says it all, and may have a key to hide
        return f"{name}.{expected}"
    return f"{name} {expected} (got {got!r})."
