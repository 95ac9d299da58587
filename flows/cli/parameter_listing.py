"""Every parameter with its default: as a list, and as a commented file for `--params`."""

import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Any

from trainer.contract.parameters import Parameters

_HEAD = """\
# Parameters for `finetune run --params FILE`. Each is at its default: take the # away before a
# name to change its value. `-p name=value` on the command line goes before what stands here.
"""
# As YAML's core schema reads it without quotes: not text.
_NOT_TEXT = re.compile(r"~|null|true|false|[-+.\d].*|", re.IGNORECASE)
_WIDTH = 98


def as_text() -> str:
    """A line each: name, default, description."""
    lines = []
    for name, field in Parameters.model_fields.items():
        default = "required" if field.is_required() else f"[{_as_typed(field.default)}]"
        lines.append(f"{name:<20} {default:<28} {field.description}")
    return "\n".join(lines)


def _as_typed(value: Any) -> str:
    """A default as `-p` takes it; what a topic's are, its description says."""
    if dataclasses.is_dataclass(value) or value == {}:
        return "{...}"
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def as_yaml() -> str:
    """A file in which all but the required parameters are comments."""
    lines = [_HEAD.rstrip()]
    for name, field in Parameters.model_fields.items():
        lines += ["", *_comment(field.description or "")]
        if field.is_required():
            lines.append(f"{name}: my-run")
            continue
        value = dataclasses.asdict(field.default) if _is_topic(field.default) else field.default
        if isinstance(value, dict) and value:
            lines += [f"# {name}:", *(f"#   {n}: {_value(v)}" for n, v in value.items())]
        else:
            lines.append(f"# {name}: {_value(value)}")
    return "\n".join(lines)


def _is_topic(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _value(value: Any) -> str:
    if (
        isinstance(value, str)
        and not _NOT_TEXT.fullmatch(value)
        and re.fullmatch(r"[\w./-]+", value)
    ):
        return value
    return json.dumps(value)


def _comment(text: str) -> Iterator[str]:
    """The description in lines that fit a page."""
    line = "##"
    for word in text.split():
        if len(line) + len(word) + 1 > _WIDTH:
            yield line
            line = "##"
        line = f"{line} {word}"
    yield line
