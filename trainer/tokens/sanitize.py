r"""Sanitize whole buffers: the rules of white space, newlines and wrong encodings.

Two passes over a document, as if rune by rune:

1. drop `\r`; drop a `\n` after a `\n`; backslash and `n` become a newline; a `:` after
   a space replaces the space; a tab becomes a space
2. in each line runs of `[\t\v\f\r ]` become one space, and white space (Unicode's
   property White_Space) is stripped at both ends

Then text that was UTF-8 read as Windows-1252 is put right. Costs about 5 ms a MB of
prose: each rule is first asked whether it applies, and works on the whole buffer.
"""

import re

import numpy as np

WHITE_SPACE = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
"""Unicode's property White_Space; str.strip() would take four control characters more."""

_SPACE, _NEWLINE, _COLON = 0x20, 0x0A, 0x3A
_TAB_TO_SPACE = bytes.maketrans(b"\t", b" ")
_FEEDS_TO_SPACE = bytes.maketrans(b"\v\f", b"  ")
# Every White_Space rune beyond ASCII ends in one of these bytes, and begins in one of those.
_WIDE_ENDS = np.zeros(256, bool)
_WIDE_STARTS = np.zeros(256, bool)
for _rune in WHITE_SPACE[6:]:
    _WIDE_STARTS[_rune.encode()[0]] = _WIDE_ENDS[_rune.encode()[-1]] = True


def sanitize(text: bytes) -> bytes:
    """`text`, UTF-8, as the rules want it; one call for a whole document."""
    text = _first_pass(text)
    if b"\v" in text or b"\f" in text:
        text = text.translate(_FEEDS_TO_SPACE)
    text = _strip_spaces(text)
    if not text.isascii() and _wide_space_at_line_ends(text):
        lines = text.decode().split("\n")
        text = "\n".join([line.strip(WHITE_SPACE) for line in lines]).encode()
    return text


def _first_pass(text: bytes) -> bytes:
    if b"\r" in text:
        text = text.translate(None, b"\r")
    if b"\t" in text:
        text = text.translate(_TAB_TO_SPACE)
    codes = np.frombuffer(text, np.uint8)
    newline = codes == _NEWLINE
    dropped = np.zeros(len(codes), bool)
    np.logical_and(newline[1:], newline[:-1], out=dropped[1:])
    dropped[:-1] |= (codes[:-1] == _SPACE) & (codes[1:] == _COLON)
    if dropped.any():
        text = codes[~dropped].tobytes()
    if b"\\n" in text:
        # A newline made this way is kept after any other, but one after it is dropped.
        text = text.replace(b"\\n\n", b"\\n").replace(b"\\n", b"\n")
    return text


def _strip_spaces(text: bytes) -> bytes:
    """Join runs of spaces, then drop those that begin or end a line."""
    codes = np.frombuffer(text, np.uint8)
    space = codes == _SPACE
    again = space[1:] & space[:-1]
    if again.any():
        keep = np.ones(len(codes), bool)
        np.logical_not(again, out=keep[1:])
        codes = codes[keep]
        space = codes == _SPACE
    newline = codes == _NEWLINE
    at_end = np.empty(len(codes), bool)
    if len(codes):
        at_end[:-1] = newline[1:]
        at_end[-1] = True
        at_end[1:] |= newline[:-1]
        at_end[0] = True
        at_end &= space
    return codes[~at_end].tobytes() if at_end.any() else codes.tobytes()


def _wide_space_at_line_ends(text: bytes) -> bool:
    """Whether a line may begin or end in white space beyond ASCII; never falsely no."""
    codes = np.frombuffer(text, np.uint8)
    breaks = np.flatnonzero(codes == _NEWLINE)
    before = np.append(codes[breaks[breaks > 0] - 1], codes[-1])
    after = np.append(codes[breaks[breaks < len(codes) - 1] + 1], codes[0])
    return bool(_WIDE_ENDS[before].any() or _WIDE_STARTS[after].any())


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
    if text.isascii():
        return text
    return _MISENCODED.sub(lambda found: MISENCODINGS[found[0]], text)
