"""The rules of what a context is, as slow and plain as they can be written.

Nothing is imported from the tokens package: text is walked rune by rune, the stream
token by token. What is fast is held to this.
"""

import json
import unicodedata

# Rule 4's table, spelled out: what UTF-8 shows when it is read as Windows-1252.
MENDED = (
    "€‚ƒ„…‡ˆ‰‹ŒŽ‘’“•–—˜™š›œžŸ¡¢£¤¥¦§¨©ª«®¯°±²³´µ¶·¸¹º»¼½¾¿"
    "ÀÂÃÄÅÆÇÈÉÊËÌÎÑÒÓÔÕÖ×ØÙÚÛÜÞßáâãäåæçèéêëìîïðñòóôõö÷øùúûüýþÿ"
)
MISENCODED = {good.encode().decode("cp1252"): good for good in MENDED}
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
    kept, at = [], 0
    while at < len(text):
        for bad, good in MISENCODED.items() if text[at] in "âÆËÅÂÃ" else ():
            if text.startswith(bad, at):
                kept.append(good)
                at += len(bad)
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
    return ["***\n".join(_texts(json.loads(line), "")) for line in lines]


def _texts(value: object, key: str) -> list[str]:
    if isinstance(value, str):
        return [value] if key == "text" else []
    if isinstance(value, dict):
        return [text for name, inner in value.items() for text in _texts(inner, name)]
    if isinstance(value, list):
        return [text for inner in value for text in _texts(inner, key)]
    return []


def stream(texts: list[str], encode, eot: int, clean: bool) -> list[int]:
    """Rules 3 to 6: the ids of all documents."""
    ids: list[int] = []
    for text in texts:
        prepared = mend(sanitize(text) if clean else text)
        if prepared:
            ids += encode(prepared)
            ids.append(eot)
    return ids


def contexts(
    ids: list[int], spelled: list[bytes], context: int, boundary: int | None, index: int
) -> list[list[int]]:
    """The stream's contexts, unpadded; `spelled` holds each token's bytes."""
    found: list[list[int]] = []
    begin = 0
    while begin < len(ids):
        end = min(begin + context, len(ids))
        while end < len(ids) and _ends_inside(ids[begin:end], spelled):
            end -= 1
        if end == begin:
            end = begin + context
        found.append(ids[begin:end])
        if end == len(ids):
            break
        begin = _next(ids, begin, end, boundary, index)
    return found


def _ends_inside(ids: list[int], spelled: list[bytes]) -> bool:
    """Whether the last bytes are the beginning of a character that is not all there."""
    tail = b"".join(spelled[token] for token in ids[-8:])
    for back in range(1, min(4, len(tail)) + 1):
        lead = tail[-back]
        if lead >= 0xC0:
            return back < (2 if lead < 0xE0 else 3 if lead < 0xF0 else 4)
        if lead < 0x80:
            return False
    return False


def _next(ids: list[int], begin: int, end: int, boundary: int | None, index: int) -> int:
    if boundary is None:
        return end if index < 0 else min(max(begin + index, begin + 1), end)
    candidates = [at for at in range(begin + 1, end + 1) if ids[at] == boundary]
    if not candidates:
        return end
    if index < 0:
        return candidates[-1] + 1
    return min(candidates, key=lambda at: (abs(at - begin - index), -at)) + 1


def sampled(found: list[list[int]], sampling: int) -> list[list[int]]:
    """The contexts that are kept."""
    return [
        context
        for at, context in enumerate(found)
        if (at + 1) * sampling // 100 > at * sampling // 100
    ]
