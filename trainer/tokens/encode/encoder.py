"""From text to ids, with the fastest encoder that is exact.

`tokenizers` runs the model's own tokenizer and is right by definition. `fastokens` does
the same work tens of times faster; it is used only where it gave the same ids on
samples of the very corpus and on text that is hard on purpose. The samples are its
beginning and 31 places drawn from its content; of each 4 kB, and of the 64 kB from there on
the 4 kB with most bytes beyond plain ASCII. They also show whether long text may be cut
(see cuts.py); where it may not, files stay whole.
"""

import functools
import random
import re
from collections.abc import Sequence
from importlib.metadata import version
from typing import NamedTuple, Protocol

import numpy as np

from trainer.contract.json_text import parse_json
from trainer.tokens.text.cuts import CUT, TIGHT_CUT, cut_text

_SAFE_STRING = 8192
"""Characters that `tokenizers` encodes at its best speed."""


_LETTER_DIGIT = re.compile("[A-Za-z][0-9]")


class Encoder(Protocol):
    """What turns text into ids."""

    name: str

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Encode each text, special tokens recognised, none added.

        Returns:
            The ids of all texts, uint32, and where each begins and the last ends, int64.
        """


class OwnEncoder:
    """The model's own tokenizer, by Hugging Face's `tokenizers`."""

    def __init__(self, tokenizer_json: str, cuts: bool) -> None:
        from tokenizers import Tokenizer

        self.name = f"tokenizers {version('tokenizers')}"
        self.tokenizer = Tokenizer.from_str(tokenizer_json)
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.cuts = cuts

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        parts = [cut_text(text, _SAFE_STRING) if self.cuts else [text] for text in texts]
        encoded = self.tokenizer.encode_batch_fast(
            [part for text in parts for part in text], add_special_tokens=False
        )
        arrays = [np.array(encoding.ids, np.uint32) for encoding in encoded]
        ids = np.concatenate(arrays) if arrays else np.empty(0, np.uint32)
        ends = np.cumsum([0, *map(len, arrays)], dtype=np.int64)
        return ids, ends[np.cumsum([0, *map(len, parts)])]


class FastEncoder:
    """The same ids by `fastokens`; raises ValueError for a tokenizer it does not know."""

    def __init__(self, tokenizer_json: str) -> None:
        # Not the package's own import, which brings transformers along.
        from fastokens._native import Tokenizer

        self._own: Encoder | None = None
        self._tokenizer_json = tokenizer_json
        self.name = f"fastokens {version('fastokens')}"
        self._tokenizer = Tokenizer.from_json_str(tokenizer_json)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        try:
            ids, offsets = self._tokenizer.encode_batch_flat(list(texts))
        except (ValueError, RuntimeError):
            # For instance a byte that a byte-level vocabulary lacks: the other one leaves it out.
            self._own = self._own or OwnEncoder(self._tokenizer_json, cuts=False)
            return self._own.encode(texts)
        return np.frombuffer(ids, "<u4"), np.frombuffer(offsets, "<u8").astype(np.int64)


@functools.lru_cache(maxsize=1)
def fast_encoder(tokenizer_json: str) -> Encoder | None:
    """The fast encoder, or None where it is not installed or refuses the tokenizer."""
    try:
        return FastEncoder(tokenizer_json)
    except (ImportError, ValueError, RuntimeError, NotImplementedError):
        return None


# --- proof ------------------------------------------------------------------------------


class Proof(NamedTuple):
    """What may be trusted for this tokenizer and corpus."""

    fast: bool
    cuts: bool


def prove(tokenizer_json: str, texts: Sequence[str]) -> Proof:
    """Compare the fast encoder, and cut text, with the model's own tokenizer.

    Args:
        tokenizer_json: The model's tokenizer.
        texts: `hard_texts`, or stretches of the corpus, a few kB each, as they will be encoded.
    """
    return prove_each(tokenizer_json, [texts])[0]


def prove_each(tokenizer_json: str, groups: Sequence[Sequence[str]]) -> list[Proof]:
    """A proof of each group of texts, as `prove` makes one."""
    may_be_cut = _may_be_cut(parse_json(tokenizer_json))
    own, fast = OwnEncoder(tokenizer_json, cuts=False), fast_encoder(tokenizer_json)
    proofs = []
    for texts in groups:
        expected = own.encode(texts)
        proofs.append(
            Proof(
                fast=fast is not None and _same(fast.encode(texts), expected),
                cuts=may_be_cut and _cuts_change_nothing(own, texts, expected),
            )
        )
    return proofs


def _same(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> bool:
    return np.array_equal(one[0], other[0]) and np.array_equal(one[1], other[1])


def _cuts_change_nothing(
    own: OwnEncoder, texts: Sequence[str], expected: tuple[np.ndarray, np.ndarray]
) -> bool:
    ways = ([part for text in texts for part in cut_text(text, 40, at)] for at in (CUT, TIGHT_CUT))
    return all(np.array_equal(own.encode(parts)[0], expected[0]) for parts in ways)


def _may_be_cut(tokenizer: dict) -> bool:
    """Whether the tokenizer is of GPT-2's kin: words first, and none across a cut.

    Where no token holds a letter and a digit side by side no merge reaches over the two.
    """
    model, normalizer = tokenizer["model"], tokenizer.get("normalizer") or {"type": "NFC"}
    stage = tokenizer.get("pre_tokenizer") or {}
    stages = stage.get("pretokenizers", [stage])
    splits = any(s.get("type") == "Split" or s.get("use_regex") for s in stages)
    known = {"ByteLevel", "Split", "Digits", "Punctuation"}
    return (
        model.get("type") == "BPE"
        and not model.get("dropout")
        and normalizer["type"] == "NFC"
        and splits
        and all(s.get("type") in known and not s.get("add_prefix_space") for s in stages)
        and not any(map(_crosses_cuts, tokenizer.get("added_tokens", ())))
        and not _LETTER_DIGIT.search(" ".join(model["vocab"]))
    )


def _crosses_cuts(token: dict) -> bool:
    """Whether a special token may reach over a place where text is cut."""
    content = token["content"]
    return bool(
        _LETTER_DIGIT.search(content)
        or re.search(r"\w\s|[\u3041-\u30fa\u4e00-\u9fff][，。、]", content)
        or (token.get("rstrip") and content[-1:].isalnum())
    )


def hard_texts(tokenizer_json: str) -> list[str]:
    """Text that encoders get wrong: white space, contractions, all planes, special tokens."""
    draw = random.Random(0)
    added = [token["content"] for token in parse_json(tokenizer_json).get("added_tokens", ())][:50]
    atoms = [
        *" \n\t\r\v\f'’.,-_#*=/\\|<>()[]{}\0\x1c\x7f\x85\xa0\u1680\u2003\u2028\u3000\ufeff\ufffd",
        *["  ", "   ", "\n\n", "\r\n", " \n", "\n ", "'s", "'ll", "'RE", "don't", "n't", "***\n"],
        *["a", "B", "word", "Word", "WORDS", "1", "12", "2024", "1234567", "½", "²", "Ⅷ", "٣"],
        *[
            "é",
            "e\u0301",
            "ñ",
            "ß",
            "ſ",
            "İ",
            "ǅ",
            "中文",
            "。",
            "，",
            "日本",
            "한국",
            "עברית",
            "हिन्दी",
            "ไทย",
        ],
        *["😀", "👩\u200d👩\u200d👧", "🇯🇵", "❤️", "𝒳", "\U0010ffff", "\u200b", "\u00ad", "\u202e"],
        *added,
    ]
    texts = []
    for size in [2, 3, 5, 8, 13, 40, 200] * 25:
        texts.append("".join(draw.choice(atoms) for _ in range(size)))
    return texts
