"""Fields of an object of the cluster as the type that they should have; else empty.

A server leaves out what is empty, writes null for it, or is a proxy that answers something else.
"""

from typing import Any

Object = dict[str, Any]


def dict_of(value: Any) -> Object:
    return value if isinstance(value, dict) else {}


def dicts_of(items: Any) -> list[Object]:
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def whole_of(value: Any, default: int) -> int:
    return value if isinstance(value, int) else default


def text_of(value: Any) -> str:
    return value if isinstance(value, str) else ""


def part_of(obj: Any, *path: str) -> Object:
    """What is at the path of names below the object; empty where there is none."""
    for name in path:
        obj = dict_of(obj).get(name)
    return dict_of(obj)


def conditions(obj: Object) -> list[Object]:
    """The object's conditions; what has no type is none."""
    found = dicts_of(part_of(obj, "status").get("conditions"))
    return [c for c in found if isinstance(c.get("type"), str)]


def words_of(reason: Any, message: Any) -> str:
    """`reason: message`, or what there is of them."""
    reason, message = text_of(reason), text_of(message)
    if not reason:
        return message
    return f"{reason}: {message}" if message and message != reason else reason
