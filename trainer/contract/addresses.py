"""How addresses are shown: without a user, a password or a query string.

A query string may hold a signature under any name. Only the step that reads the address has it.
"""

import re

_USER = re.compile(r"(?<=://)[^/\s@'\"]+@")
_QUERY = re.compile(r"(https?://[^\s?'\"]*)\?[^\s'\")]*|\?[^\s'\")]*=[^\s'\")]*")


def masked(text: str) -> str:
    """Any text, with what its addresses must not show replaced by `...`."""
    if "?" not in text and "@" not in text:
        return text
    return _USER.sub("...@", _QUERY.sub(lambda found: f"{found[1] or ''}?...", text))


def without_query(address: str) -> str:
    """An address without its query string, by which it is named: of one that has none, itself."""
    return masked(address).replace("?...", "")
