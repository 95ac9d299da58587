"""What of a dataset's folder is not read: files of other kinds, and cards of data."""

import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.tokens.text.sources import Source

LeftOutFiles = Mapping[str, Mapping[str, Any]]
CARD = "card of the data"
_NAMED = 20  # files of a kind, kinds of a dataset


def without_cards(found: "Iterable[Source]") -> "tuple[list[Source], dict[str, dict[str, Any]]]":
    """The files to read, and what is left out: other kinds, and the cards of data.

    A README.md beside data in other formats, with no other file of plain text, describes the
    data. It is no text to train on.
    """
    found = list(found)
    plain = [source for source in found if source.kind == "text"]
    cards = {source.path for source in plain if _is_readme(source.path)}
    if len(cards) < len(plain) or len(plain) == len(found):
        cards = set()
    unread = [source for source in found if not source.kind or source.path in cards]
    return [s for s in found if s.kind and s.path not in cards], with_left_out({}, unread, cards)


def with_left_out(
    left_out: LeftOutFiles, sources: "Iterable[Source]", cards: Collection[str] = ()
) -> dict[str, dict[str, Any]]:
    """`left_out` and more files; `cards`: paths of those that are cards of the data."""
    merged = {of: {**entry, "names": list(entry["names"])} for of, entry in left_out.items()}
    for source in sources:
        kind = CARD if source.path in cards else _suffix(source.path)
        entry = merged.setdefault(kind, {"files": 0, "names": []})
        entry["files"] += 1
        if len(entry["names"]) < _NAMED:
            entry["names"].append(source.path)
    return merged


def _is_readme(path: str) -> bool:
    return os.path.splitext(path.rpartition("/")[2])[0].lower() == "readme"


def _suffix(path: str) -> str:
    return os.path.splitext(path.rpartition("/")[2])[1].lower() or "no suffix"


def left_out_words(left_out: LeftOutFiles) -> str:
    """What is left out, for people: how many of each kind, and some names."""
    counts = Counter({kind: entry["files"] for kind, entry in left_out.items()})
    words = []
    for kind, count in counts.most_common(_NAMED):
        names = left_out[kind]["names"][:3]
        more = ", ..." if count > len(names) else ""
        words.append(f"{count:,} {kind} ({', '.join(names)}{more})")
    rest = len(counts) - len(words)
    return ", ".join(words) + (f" and {rest} more kinds" if rest else "")
