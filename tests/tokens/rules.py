"""The rules of what a context is, as slow and plain as they can be written.

Nothing is imported from the tokens package: text is walked rune by rune, the stream
token by token. What is fast is held to this.
"""

import json
import unicodedata
from bisect import bisect_left, bisect_right

# Rule 4's table, spelled out: what UTF-8 shows when it is read as Windows-1252.
MENDED = (
    "€‚ƒ„…‡ˆ‰‹ŒŽ‘’“•–—˜™š›œžŸ¡¢£¤¥¦§¨©ª«®¯°±²³´µ¶·¸¹º»¼½¾¿"
    "ÀÂÃÄÅÆÇÈÉÊËÌÎÑÒÓÔÕÖ×ØÙÚÛÜÞßáâãäåæçèéêëìîïðñòóôõö÷øùúûüýþÿ"
)
MISENCODED = {good.encode().decode("cp1252"): good for good in MENDED}
MISENCODED_LEADS = {bad[0] for bad in MISENCODED}
MISENCODED_SIZES = sorted({len(bad) for bad in MISENCODED})
WHITE_SPACE = [
    chr(code)
    for code in range(0x3001)
    if unicodedata.category(chr(code)) in ("Zs", "Zl", "Zp") or code in (9, 10, 11, 12, 13, 0x85)
]


def sanitize(text: str) -> str:
    """Rule 3."""
    kept: list[str] = []
    for rune in text:
        last = kept[-1] if kept else ""
        if rune == "\r" or (rune == "\n" and last == "\n"):
            continue
        if rune == "n" and last == "\\":
            kept[-1] = "\n"
        elif rune == ":" and last == " ":
            kept[-1] = ":"
        else:
            kept.append(" " if rune == "\t" else rune)
    return "\n".join(_line(line) for line in "".join(kept).split("\n"))


def _line(line: str) -> str:
    kept: list[str] = []
    for rune in line:
        if rune in "\t\v\f\r ":
            if not (kept and kept[-1] == " "):
                kept.append(" ")
        else:
            kept.append(rune)
    while kept and kept[0] in WHITE_SPACE:
        kept.pop(0)
    while kept and kept[-1] in WHITE_SPACE:
        kept.pop()
    return "".join(kept)


def mend(text: str) -> str:
    """Rule 4."""
    if not MISENCODED_LEADS & set(text):
        return text
    kept, at = [], 0
    while at < len(text):
        for size in MISENCODED_SIZES if text[at] in MISENCODED_LEADS else ():
            good = MISENCODED.get(text[at : at + size])
            if good:
                kept.append(good)
                at += size
                break
        else:
            kept.append(text[at])
            at += 1
    return "".join(kept)


def documents(name: str, content: bytes) -> list[str]:
    """Rule 1: the documents of one file."""
    text = content.decode()
    text = text.removeprefix("\ufeff")
    if not name.endswith(".jsonl"):
        return [text]
    lines = [line for line in text.split("\n") if line.strip()]
    return ["***\n".join(_texts(json.loads(line, object_pairs_hook=Pairs), "")) for line in lines]


class Pairs(list):
    """An object's keys and values: a key may stand there twice."""


def _texts(value: object, key: str) -> list[str]:
    if isinstance(value, str):
        return [value] if key == "text" else []
    if isinstance(value, Pairs):
        return [text for name, inner in value for text in _texts(inner, name)]
    if isinstance(value, list):
        return [text for inner in value for text in _texts(inner, key)]
    return []


def encoded(
    texts: list[str], encode_batch, before: list[int], eot: int, clean: bool
) -> list[list[int]]:
    """Rules 3 to 6: the ids of each document, none where it is empty."""
    prepared = [mend(sanitize(text) if clean else text) for text in texts]
    found = encode_batch(prepared)
    return [[*before, *ids, eot] if text else [] for text, ids in zip(prepared, found, strict=True)]


def contexts(
    ids: list[int], spelled: list[bytes], context: int, boundary: int | None, index: int
) -> list[tuple[int, int]]:
    """Where the stream's contexts begin and end; `spelled` holds each token's bytes."""
    found: list[tuple[int, int]] = []
    boundaries = [at for at, token in enumerate(ids) if token == boundary]
    begin = 0
    while begin < len(ids):
        end = min(begin + context, len(ids))
        # The character may begin before the context: four tokens hold all of its bytes.
        while begin < end < len(ids) and _ends_inside(ids[max(0, end - 4) : end], spelled):
            end -= 1
        if end == begin:
            end = begin + context
        found.append((begin, end))
        if end == len(ids):
            break
        if boundary is None:
            begin = end if index < 0 else min(max(begin + index, begin + 1), end)
        else:
            begin = after_boundary(boundaries, begin, end, index)
    return found


def _ends_inside(ids: list[int], spelled: list[bytes]) -> bool:
    """Whether the last bytes are the beginning of a character that is not all there."""
    tail = b"".join(spelled[token] for token in ids)
    for back in range(1, min(4, len(tail)) + 1):
        lead = tail[-back]
        if lead >= 0xC0:
            return back < (2 if lead < 0xE0 else 3 if lead < 0xF0 else 4)
        if lead < 0x80:
            return False
    return False


def after_boundary(boundaries: list[int], begin: int, end: int, index: int) -> int:
    """Where the context after the one from `begin` to `end` begins."""
    first, stop = bisect_right(boundaries, begin), bisect_right(boundaries, end)
    if first == stop:
        return end
    if index < 0:
        return boundaries[stop - 1] + 1
    # The nearest is the first one from begin + index on, or the one before that.
    at = bisect_left(boundaries, begin + index, first, stop)
    near = boundaries[max(first, at - 1) : min(stop, at + 1)]
    return min(near, key=lambda place: (abs(place - begin - index), -place)) + 1


def sampled(count: int, sampling: int, held: bool = False) -> list[int]:
    """Which of `count` contexts are kept; the first one of those that are held out is."""
    kept = [at for at in range(count + 100) if (at + 1) * sampling // 100 > at * sampling // 100]
    first = kept[0] if held and kept else 0
    return [at - first for at in kept if at - first < count]
