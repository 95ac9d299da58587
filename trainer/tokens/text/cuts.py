"""Where long text may be cut without changing an id.

A cut lies between a letter or digit and a single space or line break that a letter
or digit follows. There every pre-tokenizer of GPT-2's kin ends one word and begins
the next, and the sanitizer neither drops nor joins anything. 'n' is no such letter:
after a backslash it makes a newline. Chinese and Japanese, which have no spaces, are
cut before their comma and full stop. Where 64 KiB have none of these (base64, a minified
page) text is cut between a letter and a digit, of ASCII: such a tokenizer keeps them in
different words. Whether a tokenizer is of that kin is proven, see encoder.py.
"""

import re

PIECE_BYTES = 1 << 20
"""Aim of a piece; small enough that a worker's memory is its tokenizer's."""
WINDOW_BYTES = 1 << 16
MOST_UNCUT_BYTES = 4 << 20
"""Longest stretch without a place to cut: an encoder takes up to 60 times as much memory."""
MOST_WHOLE_BYTES = 16 << 20
"""Longest document that is encoded whole, with a tokenizer whose text may not be cut, and
longest line of JSONL."""

CUT = re.compile(r"[^\W_n](?=\r?\n[^\W_]| [^\W_])|[\u3041-\u30fa\u4e00-\u9fff](?=[，。、][^\W_])")
TIGHT_CUT = re.compile(r"[A-Za-mo-z](?=[0-9])")
_TIGHT_CUT_BYTES = re.compile(TIGHT_CUT.pattern.encode())


def first_cut(text: str, begin: int = 0) -> int | None:
    """The first place at or after `begin` where `text` may be cut, or None."""
    found = CUT.search(text, begin)
    return found.end() if found else None


def cut_text(text: str, size: int, where: re.Pattern[str] = CUT) -> list[str]:
    """`text` in parts of about `size` characters, cut where it is safe."""
    parts, begin = [], 0
    while len(text) - begin > size:
        found = where.search(text, begin + size)
        if not found:
            break
        parts.append(text[begin : found.end()])
        begin = found.end()
    parts.append(text[begin:])
    return parts


def cut_long_text(text: str) -> list[str]:
    """`text` in parts of about a piece, cut between letter and digit where there is no other."""
    parts = []
    for part in cut_text(text, PIECE_BYTES):
        long = len(part) > PIECE_BYTES + WINDOW_BYTES
        parts += cut_text(part, PIECE_BYTES, TIGHT_CUT) if long else [part]
    return parts


def cut_bytes(window: bytes) -> int | None:
    """The first place in `window`, a stretch of UTF-8 cut anywhere, where it may be cut.

    Returns:
        Offset in bytes, or None where the window has no such place.
    """
    cut = None
    if not window.isascii() or b" " in window or b"\n" in window:
        cut = _wide_cut(window)
    if cut is None and (tight := _TIGHT_CUT_BYTES.search(window)):
        cut = tight.end()
    return cut


def _wide_cut(window: bytes) -> int | None:
    """The first place with white space or before a Chinese comma."""
    begin = 0
    while begin < min(4, len(window)) and 0x80 <= window[begin] < 0xC0:
        begin += 1
    # What is not UTF-8 is found, and reported, by who reads the piece.
    text = window[begin:].decode("utf-8", errors="replace")
    cut = first_cut(text)
    if cut is None or "\ufffd" in text[:cut]:
        return None
    return begin + len(text[:cut].encode())
