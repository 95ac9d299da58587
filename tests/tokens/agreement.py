"""Random corpora, and whether a store agrees with the slow model of the rules."""

import json
import random
from dataclasses import dataclass, field

import numpy as np

from tests.tokens import rules
from tests.tokens.conftest import Volume, texts
from tests.tokens.models import EOT, LLAMA, byte_level, spelled
from trainer.tokens.build import drawn_order

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

TOKENIZERS = {"models/bytes": byte_level(), "models/llama": byte_level(LLAMA)}
SPELLED = {name: spelled(tokenizer) for name, tokenizer in TOKENIZERS.items()}


@dataclass
class Corpus:
    """Files, and the options they are tokenized with."""

    files: dict[str, bytes]
    options: dict = field(default_factory=dict)


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
    """Files with about so many documents, and random options."""
    files: dict[str, bytes] = {}
    left = documents
    while left > 0:
        name = f"{draw.choice(['', 'b/', 'a/c/'])}{draw.choice('abcé')}{len(files)}"
        mark = draw.choice(["", "", "\ufeff"]).encode()
        if draw.random() < 0.5 or left == 1:
            files[name + draw.choice([".txt", ".md"])] = mark + strange_text(draw).encode()
            left -= 1
        else:
            count = draw.randint(1, max(1, left))
            lines = [_line(draw) for _ in range(count)]
            end = draw.choice(["", "\n", "\n\n"])
            files[name + ".jsonl"] = mark + ("\n".join(lines) + end).encode()
            left -= count
    return Corpus(files, _options(draw))


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
    return json.dumps(made, ensure_ascii=draw.random() < 0.5)


def _options(draw: random.Random) -> dict:
    by_size = ["size_ascending", "size_descending"]
    return {
        "model": draw.choice(list(TOKENIZERS)),
        "sanitize": draw.random() < 0.7,
        "context": draw.choice([1, 2, 5, 8, 17, 32, 100, 512]),
        "boundary_token": draw.choice(["\\n", "\\n", "", ".", EOT, " the"]),
        "boundary_index": draw.choice([-1, -1, 0, 1, 3, 20, 600]),
        "sampling": draw.choice([100, 100, 100, 50, 7]),
        "eot_token": draw.choice(["", "", EOT, "<|pad|>"]),
        "reorder": draw.choice(
            ["", "none", "name_ascending", "name_descending", *by_size, "shuffle"]
        ),
    }


def ordered(files: dict[str, bytes], reorder: str) -> list[str]:
    """Rule 2, for the orders that are not drawn."""
    names = sorted(files, key=str.encode)
    if reorder == "name_descending":
        return names[::-1]
    if reorder == "size_ascending":
        return sorted(names, key=lambda name: (len(files[name]), name.encode()))
    if reorder == "size_descending":
        return sorted(names, key=lambda name: (-len(files[name]), name.encode()))
    return names


def expected(corpus: Corpus) -> list[list[int]]:
    """The contexts by the slow model."""
    options = corpus.options
    tokenizer = TOKENIZERS[options["model"]]

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    def one(text: str) -> int:
        return encode(text.replace("\\n", "\n"))[0]

    names = ordered(corpus.files, options["reorder"])
    documents = [text for name in names for text in rules.documents(name, corpus.files[name])]
    eot = one(options["eot_token"] or EOT)
    ids = rules.stream(documents, encode, eot, options["sanitize"])
    boundary = one(options["boundary_token"]) if options["boundary_token"] else None
    found = rules.contexts(
        ids, SPELLED[options["model"]], options["context"], boundary, options["boundary_index"]
    )
    kept = rules.sampled(found, options["sampling"])
    if options["reorder"] == "shuffle":
        kept = [kept[at] for at in drawn_order(len(kept), 42)]
    return kept


def disagreement(volume: Volume, corpus: Corpus) -> str:
    """Empty where the store of `corpus` is what the slow model says, else what differs."""
    wanted = expected(corpus)
    if not wanted:
        return ""  # refused; see test_bad_input
    files: dict[str, bytes | str] = dict(corpus.files)
    store = volume.store(files, **corpus.options, train_ratio=1.0)
    got = texts(store)
    if got != wanted:
        at = next(
            (i for i, pair in enumerate(zip(got, wanted, strict=False)) if pair[0] != pair[1]), -1
        )
        pair = (got[at], wanted[at]) if at >= 0 else (len(got), len(wanted))
        return f"context {at}: {pair[0]} is not {pair[1]}"
    pad = store.manifest.pad_token_id
    rows = np.array(store.contexts)
    columns = np.arange(store.manifest.context)
    if not (rows[columns[None, :] >= np.array(store.lengths)[:, None]] == pad).all():
        return "padding is not the pad token"
    totals = store.manifest.totals
    used = totals["in_contexts"] + totals["boundaries"] + totals["sampled_out"]
    if totals["encoded"] + totals["repeated"] != used:
        return f"the ledger does not add up: {totals}"
    return ""
