"""Names with a dot: a key of a topic, as `optimizer.weight_decay`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from trainer.contract.json_text import parse_json


def with_value(values: Mapping[str, Any], name: str, value: Any) -> dict[str, Any]:
    """The values with one more; of a topic, with that key over the others that it has.

    Args:
        name: A parameter, or TOPIC.KEY.
        value: Of a key also as text, which is read as JSON where it is JSON.
    """
    topic, _, key = name.partition(".")
    held = _as_object(values.get(topic))
    if not key or held is None:
        return {**values, name: value}
    return {**values, topic: {**held, key: _from_text(value)}}


def _as_object(value: Any) -> dict[str, Any] | None:
    """A topic's keys and values; None: it is no object, and the name stays as it is."""
    if value is None or value == "":
        return {}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    found = _from_text(value)
    return dict(found) if isinstance(found, Mapping) else None


def _from_text(value: Any) -> Any:
    try:
        return parse_json(value) if isinstance(value, str) else value
    except ValueError:
        return value
