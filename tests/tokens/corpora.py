"""Random corpora: files of every kind with text that hurts, and random options."""

import gzip
import json
import random
from collections.abc import Callable
from dataclasses import dataclass

import zstandard

from tests.tokens.models import EOT

MODELS = ["models/bytes", "models/llama", "models/begins"]
ATOMS = [
    *" \n\t\r\v\f\\n:.,'\"-_#|<>{}\0\x1b\x1c\x1f\x7f\x85\xa0\xad\u1680\u2003\u200b\u2028\u202f",
    *"\u205f\u3000\ufeff\ufffdÂÃâ€¦ÅÆË",
    *["  ", "\n\n", "\r\n", " \n", "\n ", "\\n", "\\\r\n", "\\\\n", " :", "  :", "\t:", "***\n"],
    *["a", "n", "B", "the ", "Rider", " came", "'s", "don't", "12", "2024", "½", "²", "٣", "Ⅷ"],
    *[
        "é",
        "e\u0301",
        "ß",
        "İ",
        "中文",
        "字符，",
        "。",
        "日本語",
        "한국어",
        "עברית",
        "हिन्दी",
        "ไทย",
    ],
    *[
        "😀",
        "👩\u200d👩\u200d👧",
        "🇯🇵",
        "𝒳",
        "\U0010ffff",
        "â‚¬",
        "Ã©",
        "â€œ",
        "ÃƒÂ©",
        "Ã‚Â¡",
        "Â Â",
    ],
    *[EOT, "<|pad|>", "<|turn|>", "<|endof", "text|>"],
]
WORDS = "the rider came down from ridge at noon and dust with him nothing was said of well".split()

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": lambda content: gzip.compress(content, 1, mtime=0),
    ".zst": lambda content: zstandard.compress(content, 1),
}
DECOMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.decompress,
    ".zst": zstandard.decompress,
}


@dataclass
class Corpus:
    """Files, and the options they are tokenized with."""

    files: dict[str, bytes]
    options: dict
    documents: int
    """That are in the files, empty ones too."""


def strange_text(draw: random.Random) -> str:
    """A document that hurts: split characters, white space of all kinds, special tokens."""
    kind = draw.random()
    if kind < 0.1:
        return draw.choice(["", " ", "\n", "\ufeff", " \u3000\n\t", EOT])
    if kind < 0.6:
        return "".join(draw.choice(ATOMS) for _ in range(draw.randint(1, 60)))
    if kind < 0.7:
        size = draw.randint(1, 40)
        runes = (chr(draw.choice([0x7F, 0x7FF, 0xFFFF, 0x10FFFF])) for _ in range(size))
        return "".join(rune if not 0xD800 <= ord(rune) < 0xE000 else "?" for rune in runes)
    if kind < 0.8:  # one huge line
        return " ".join(draw.choice(WORDS) for _ in range(draw.randint(50, 400)))
    lines = (" ".join(draw.choice(WORDS) for _ in range(draw.randint(0, 12))) for _ in range(12))
    return draw.choice(["\n", "\r\n", "\n\n", "\n  "]).join(lines)


def random_corpus(draw: random.Random, documents: int) -> Corpus:
    """Random options, and files with about so many documents, fewer where much is repeated."""
    options = random_options(draw)
    files: dict[str, bytes] = {}
    documents = documents if _repeats(options) < 20 else min(documents, 150)
    left = documents
    while left > 0:
        name = f"{draw.choice(['', 'b/', 'a/c/'])}{draw.choice('abcé')}{len(files)}"
        mark = draw.choice(["", "", "\ufeff"]).encode()
        if draw.random() < 0.5 or left == 1:
            name += draw.choice([".txt", ".md"])
            content = mark + strange_text(draw).encode()
            left -= 1
        else:
            count = draw.randint(1, max(1, left))
            lines = [_line(draw) for _ in range(count)]
            end = draw.choice(["", "\n", "\n\n"])
            name += ".jsonl"
            content = mark + ("\n".join(lines) + end).encode()
            left -= count
        suffix = draw.choice(["", "", "", "", ".gz", ".zst"])
        files[name + suffix] = COMPRESS[suffix](content)
    return Corpus(files, options, documents)


def _repeats(options: dict) -> float:
    """About how often a token is in a context."""
    index = options["boundary_index"]
    if index < 0:
        return 1.0
    return options["context"] / max(index, 10 if options["boundary_token"] else 1)


def _line(draw: random.Random) -> str:
    text = strange_text(draw)
    made = draw.choice(
        [
            {"text": text},
            {"id": 7, "text": text, "title": "x"},
            {"parts": [{"text": text}, {"text": strange_text(draw)}], "text": ["a", text]},
            {"meta": {"title": "no", "text": text}},
        ]
    )
    line = json.dumps(made, ensure_ascii=draw.random() < 0.5)
    # Any object may have a key twice.
    return line[:-1] + draw.choice(["}", "}", "}", ', "text": ["c", "d"]}', ', "t\\u0065xt": "e"}'])


def random_options(draw: random.Random) -> dict:
    by_size = ["size_ascending", "size_descending"]
    by_name = ["", "none", "name_ascending", "name_descending"]
    return {
        "model": draw.choice(MODELS),
        "sanitize": draw.random() < 0.7,
        "context": draw.choice([1, 2, 5, 8, 17, 32, 100, 512]),
        "boundary_token": draw.choice(["\\n", "\\n", "", ".", EOT, " the"]),
        "boundary_index": draw.choice([-1, -1, 0, 1, 3, 20, 600]),
        "sampling": draw.choice([100, 100, 100, 50, 7]),
        "eot_token": draw.choice(["", "", EOT, "<|pad|>"]),
        "pad_token": draw.choice(["", "", EOT, "a"]),
        "reorder": draw.choice([*by_name, *by_size, "random", "shuffle"]),
        "random_seed": draw.choice([42, 0, 2**32 - 1]),
        "train_ratio": draw.choice([1.0, 1.0, 0.9, 0.5, 0.0]),
    }
