r"""Sanitize whole buffers: the rules of white space, newlines and wrong encodings.

Two passes over a document, as if rune by rune:

1. drop `\r`; drop a `\n` after a `\n`; backslash and `n` become a newline; a `:` after
   a space replaces the space; a tab becomes a space
2. in each line runs of `[\t\v\f\r ]` become one space, and white space (Unicode's
   property White_Space) is stripped at both ends

Then text that was UTF-8 read as Windows-1252 is put right. Costs about 1 ms a MB of
prose, 3 of source code: one mask over the whole buffer says what is dropped, and text
without anything to drop is handed back as it is.
"""

import re

import numpy as np

WHITE_SPACE = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
"""Unicode's property White_Space; str.strip() would take four control characters more."""

_SPACE, _NEWLINE, _COLON, _BACKSLASH = 0x20, 0x0A, 0x3A, 0x5C
_TAB_TO_SPACE = bytes.maketrans(b"\t", b" ")
_WIDE = [int.from_bytes(rune.encode()) for rune in WHITE_SPACE[6:]]
_WIDE_OF_TWO, _WIDE_OF_THREE = np.array(_WIDE[:2]), np.array(_WIDE[2:])  # bytes


def sanitize(text: bytes) -> bytes:
    """`text`, UTF-8, as the rules want it; one call for a whole document."""
    if b"\r" in text:
        text = text.translate(None, b"\r")
    if b"\t" in text:
        text = text.translate(_TAB_TO_SPACE)
    if text:
        text = _drop(text)
    if not text.isascii() and _wide_space_at_line_ends(text):
        lines = text.decode().split("\n")
        text = "\n".join([line.strip(WHITE_SPACE) for line in lines]).encode()
    return text


def _drop(text: bytes) -> bytes:
    """Both passes over ASCII's white space, as one mask of what is dropped."""
    codes = np.frombuffer(text, np.uint8)
    newline, space = codes == _NEWLINE, codes == _SPACE
    line_end = newline
    dropped = np.zeros(len(codes), bool)
    dropped[:-1] = space[:-1] & (codes[1:] == _COLON)
    if b"\\" in text:
        made = np.flatnonzero((codes[:-1] == _BACKSLASH) & (codes[1:] == ord("n")))
        codes, line_end = codes.copy(), newline.copy()
        # Of the two the second stays, as a newline that the rule for two newlines keeps.
        codes[made + 1], dropped[made] = _NEWLINE, True
        line_end[made] = line_end[made + 1] = True
    if b"\v" in text or b"\f" in text:  # spaces for the second pass alone
        space |= (codes == 0x0B) | (codes == 0x0C)
        codes = np.where(space, np.uint8(_SPACE), codes)
    again = space[1:] & space[:-1]
    dropped[1:] |= again | (newline[1:] | space[1:]) & line_end[:-1]
    dropped[:-1] |= space[:-1] & line_end[1:]
    dropped[0] |= space[0]
    dropped[-1] |= space[-1]
    _drop_first_of_trailing(dropped, space, again, line_end)
    return _without(codes, dropped)


def _drop_first_of_trailing(
    dropped: np.ndarray, space: np.ndarray, again: np.ndarray, line_end: np.ndarray
) -> None:
    """Of a run of spaces the first was kept: drop it too where the run ends a line."""
    lasts = np.flatnonzero(again[:-1] & line_end[2:]) + 1
    if again[-1:].any():
        lasts = np.append(lasts, len(space) - 1)
    if len(lasts):
        firsts = np.flatnonzero(space[1:] & ~space[:-1]) + 1  # one at the start is dropped
        place = np.searchsorted(firsts, lasts, side="right") - 1
        dropped[firsts[place[place >= 0]]] = True


def _without(codes: np.ndarray, dropped: np.ndarray) -> bytes:
    """The text without the bytes that are `dropped`."""
    places = np.flatnonzero(dropped)
    if len(places) > len(codes) // 1024:
        return codes[~dropped].tobytes()
    kept = codes.data  # few: copying what is between them takes half the time
    edges = places.tolist()
    begins, ends = [0, *(edge + 1 for edge in edges)], [*edges, len(codes)]
    return b"".join([kept[begin:end] for begin, end in zip(begins, ends, strict=True)])


def _wide_space_at_line_ends(text: bytes) -> bool:
    """Whether a line begins or ends in white space beyond ASCII."""
    codes = np.frombuffer(b"\0\0\0" + text + b"\0\0\0", np.uint8)
    breaks = np.flatnonzero(codes == _NEWLINE)
    ends, begins = np.append(breaks, len(codes) - 3), np.append(breaks + 1, 3)
    ends, begins = ends[codes[ends - 1] >= 0x80], begins[codes[begins] >= 0x80]
    last, first = _three_bytes(codes, ends - 3), _three_bytes(codes, begins)
    return bool(
        (last[:, None] == _WIDE_OF_THREE).any()
        or (first[:, None] == _WIDE_OF_THREE).any()
        or (last[:, None] & 0xFFFF == _WIDE_OF_TWO).any()
        or (first[:, None] >> 8 == _WIDE_OF_TWO).any()
    )


def _three_bytes(codes: np.ndarray, at: np.ndarray) -> np.ndarray:
    one, two, three = (codes[at + place].astype(np.uint32) for place in range(3))
    return one << 16 | two << 8 | three


# --- wrong encodings --------------------------------------------------------------------

# Bytes that Windows-1252 does not define or shows as nothing (no-break space, soft hyphen):
# what was read through them can't be told from other text any more.
_UNSEEN = {0x81, 0x8D, 0x8F, 0x90, 0x9D, 0xA0, 0xAD}


def _misencodings() -> dict[bytes, bytes]:
    """What each character of Windows-1252 became, and the character, as UTF-8."""
    pairs = {}
    for byte in range(0x80, 0x100):
        if byte in _UNSEEN:
            continue
        good = bytes([byte]).decode("cp1252")
        encoded = good.encode()
        # The reference leaves the not sign alone.
        if good != "¬" and not _UNSEEN.intersection(encoded):
            pairs[encoded.decode("cp1252").encode()] = encoded
    return pairs


MISENCODINGS = _misencodings()
"""110 pairs; each key begins with the byte 0xC3, and none is a prefix of another."""
_MISENCODED = re.compile(b"\xc3(?:%s)" % b"|".join(re.escape(key[1:]) for key in MISENCODINGS))


def mend_encoding(text: bytes) -> bytes:
    """Put right what was UTF-8 read as Windows-1252, leftmost first, not rescanned."""
    if b"\xc3" not in text:
        return text
    return _MISENCODED.sub(lambda found: MISENCODINGS[found[0]], text)
