"""Text and tokenizers for benchmarks/tokens.py, made from what every Python has."""

import itertools
import json
import os
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer

FILE_BYTES = 1_000_000
SHAPES = ("files", "one-file", "one-line", "tiny")
_DISTINCT_FILES = 32
_TRAINED_MERGES = 30_000
# The pattern that Llama 3 and its kin split words by.
_LLAMA = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@cache
def _sources() -> list[str]:
    """The standard library's sources."""
    paths = sorted(Path(os.__file__).parent.glob("**/*.py"))
    return [path.read_text(encoding="utf-8", errors="ignore") for path in paths][:1_500]


def prose(draw: random.Random) -> Iterator[str]:
    """English: word follows word as in the standard library's documentation."""
    words: list[str] = []
    for source in _sources():
        for quoted in re.findall(r'"""(.+?)"""', source, re.DOTALL):
            words += re.findall(r"[A-Za-z][A-Za-z'-]*[.,;:!?]?", quoted)
    following: dict[str, list[str]] = defaultdict(list)
    for word, after in itertools.pairwise(words):
        following[word].append(after)
    word = "The"
    while True:
        chosen = []
        for _ in range(draw.randint(30, 150)):
            chosen.append(word)
            word = draw.choice(following[word]) if following[word] else "The"
        yield " ".join(chosen).replace(" The ", " “The” ") + draw.choice([".\n", ".\n\n"])


def code(draw: random.Random) -> Iterator[str]:
    """The standard library's sources, in a drawn order."""
    while True:
        yield from draw.sample(_sources(), len(_sources()))


def unicode(draw: random.Random) -> Iterator[str]:
    """Words of many scripts, Chinese without spaces among them."""
    scripts = [(0xC0, 0x24F), (0x391, 0x3C9), (0x410, 0x44F), (0x5D0, 0x5EA), (0x621, 0x64A)]
    scripts += [(0x905, 0x939), (0xE01, 0xE2E), (0x4E00, 0x9FA5), (0xAC00, 0xD7A3)]
    scripts += [(0x1F600, 0x1F64F)]
    while True:
        low, high = draw.choice(scripts)
        words = ("".join(map(chr, draw.choices(range(low, high), k=5))) for _ in range(30))
        yield draw.choice([" ", " ", "，"]).join(words) + draw.choice(["\n", "\r\n", "\n\n"])


KINDS: dict[str, Callable[[random.Random], Iterator[str]]] = {
    "prose": prose,
    "code": code,
    "unicode": unicode,
}


@cache
def blocks(kind: str, count: int) -> list[bytes]:
    """Texts of about 1 MB, whole paragraphs."""
    parts = KINDS[kind](random.Random(kind))
    made = []
    for _ in range(count):
        block = bytearray()
        while len(block) < FILE_BYTES:
            block += next(parts).encode()
        made.append(bytes(block))
    return made


def write_corpus(folder: Path, kind: str, megabytes: int, shape: str) -> int:
    """Write text in one of SHAPES; returns its bytes. It repeats after 32 MB, in other files."""
    folder.mkdir(parents=True)
    texts = blocks(kind, min(megabytes, _DISTINCT_FILES))
    total = 0
    for number in range(megabytes):
        text = b"%d\n" % number + texts[number % len(texts)]
        if shape == "one-line":
            text = text.replace(b"\r", b" ").replace(b"\n", b" ")
        parts = [text]
        if shape == "tiny":
            parts = [b"%d\n" % at + text[at : at + 1000] for at in range(0, len(text), 1000)]
            parts = [part.decode(errors="ignore").encode() for part in parts]
        for at, part in enumerate(parts):
            name = f"{number:05}-{at}.txt" if shape in ("files", "tiny") else "all.txt"
            with open(folder / name, "ab") as file:
                total += file.write(part)
    return total


@cache
def tokenizer(vocabulary: int) -> Tokenizer:
    """A byte-level BPE of so many tokens, of GPT-2's kind or, from 100,000 on, of Llama 3's.

    30,000 merges are trained on text of all kinds; tokens that no text has fill the rest.
    """
    made = Tokenizer(models.BPE())
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=vocabulary < 100_000)
    made.pre_tokenizer = by_bytes
    if vocabulary >= 100_000:
        split = pre_tokenizers.Split(Regex(_LLAMA), "isolated")
        made.pre_tokenizer = pre_tokenizers.Sequence([split, by_bytes])
    made.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=_TRAINED_MERGES,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (text.decode() for kind in KINDS for text in blocks(kind, 2))
    made.train_from_iterator(texts, trainer)
    fields = json.loads(made.to_str())
    vocab = fields["model"]["vocab"]
    for number in range(len(vocab), vocabulary):
        vocab[f"<unused {number}>"] = number
    return Tokenizer.from_str(json.dumps(fields))


def write_model(folder: Path, vocabulary: int) -> None:
    """A model's folder with that tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer(vocabulary).save(str(folder / "tokenizer.json"))
    fields = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))
