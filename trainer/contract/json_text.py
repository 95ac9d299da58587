"""The one reader of JSON text: what it can't read is a ValueError, however it is wrong.

Standard library only, so that processes that read no more than text stay small.
"""

import json
from typing import Any

MOST_LEVELS = 100
"""Of nesting. Files of models, tokenizers and runs have fewer than 20, and Python gives up at
about 1,000, also where it writes the value again."""


def parse_json(text: str | bytes | bytearray) -> Any:
    """The value that `text` is.

    Raises:
        ValueError: It is no JSON, not UTF-8, or nested more than MOST_LEVELS deep.
    """
    try:
        found = json.loads(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    if _may_be_deep(text) and _is_deeper(found, MOST_LEVELS):
        raise ValueError(_TOO_DEEP)
    return found


_TOO_DEEP = f"nested too deep (more than {MOST_LEVELS} levels)"


def _may_be_deep(text: str | bytes | bytearray) -> bool:
    if isinstance(text, str):
        return text.count("[") + text.count("{") > MOST_LEVELS
    return text.count(b"[") + text.count(b"{") > MOST_LEVELS


def _is_deeper(value: Any, levels: int) -> bool:
    level = [value]
    for _ in range(levels + 1):
        inner = (each.values() if isinstance(each, dict) else each for each in level)
        level = [one for each in inner for one in each if isinstance(one, dict | list)]
        if not level:
            return False
    return True
