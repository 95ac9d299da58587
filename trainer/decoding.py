"""The text of token ids: whole, and token by token as an answer is generated.

The text of an answer is what the tokenizer decodes from prompt and answer together, without
the text of the prompt. A tokenizer can change text that it decoded before: bytes that make no
character are shown as U+FFFD until the rest of the character comes. A stream therefore hands
out only text that no further token can change:

    byte-level       whole characters
    byte fallback    nothing while tokens are bytes: one wrong byte changes all of their run
    other decoders   each token with the tokens before it, which decide about spaces
    unknown ones     nothing before the answer ends

Source: the decoders of Hugging Face's tokenizers (`decode_chain` of each).
"""

import codecs
import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from trainer.contract.json_text import parse_json
from trainer.tokens.byte_level import byte_alphabet

_BYTE_TOKEN = re.compile("<0x[0-9A-Fa-f]{2}>")
# Text before a space that follows such a character is not changed by what follows it: see
# `clean_up_tokenization` of transformers, which joins " n't", " ' " and punctuation.
_CLEAN_CUT = re.compile(r"[^\W_n](?= )")


def decoded_answer(tokenizer: Any, prompt_ids: Sequence[int], answer_ids: Sequence[int]) -> str:
    """The text of an answer, special tokens left out."""
    prompt, both = list(prompt_ids), [*prompt_ids, *answer_ids]
    before = tokenizer.decode(prompt, skip_special_tokens=True) if prompt else ""
    return tokenizer.decode(both, skip_special_tokens=True)[len(before) :]


class AnswerStream:
    """The text of one answer, token by token: equals `decoded_answer` at each token.

    That is: what `push` returned so far, and then `held()`.
    """

    def __init__(self, tokenizer: Any, prompt_ids: Sequence[int]) -> None:
        self._stream = _decoding(tokenizer).stream(prompt_ids)
        self._skipped = len(self._stream.held())  # text of the prompt that may still change

    def push(self, token_id: int) -> str:
        """Add a token; returns the text that no further token can change."""
        text = self._stream.push(token_id)
        skipped = min(self._skipped, len(text))
        self._skipped -= skipped
        return text[skipped:]

    def held(self) -> str:
        """The text after that, which may change with the next token."""
        return self._stream.held()[self._skipped :]


# --- the kinds of decoders --------------------------------------------------------------


class _Stream(Protocol):
    def push(self, token_id: int) -> str: ...

    def held(self) -> str: ...


@dataclass(frozen=True)
class _Decoding:
    """How a tokenizer decodes."""

    decode: Callable[[list[int]], str]
    """The tokenizer's own, for ids that are none of `skipped`."""
    token: Callable[[int], str | None]
    """A token as the vocabulary spells it."""
    skipped: frozenset[int]
    kind: str
    clean_up: Callable[[str], str] | None

    def stream(self, prompt_ids: Sequence[int]) -> _Stream:
        stream: _Stream
        if self.kind == "bytes":
            stream = _Bytes(self, prompt_ids)
        elif self.kind == "tokens":
            stream = _Window(self, prompt_ids)
        else:
            return _Whole(self, prompt_ids)
        return _CleanedUp(self.clean_up, stream, self, prompt_ids) if self.clean_up else stream

    def shown(self, ids: Sequence[int]) -> list[int]:
        """The ids that have text; the decoder does not see the others."""
        return [i for i in ids if i not in self.skipped and self.token(i) is not None]


@functools.lru_cache(maxsize=8)
def _decoding(tokenizer: Any) -> _Decoding:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or not hasattr(backend, "to_str"):

        def whole(ids: list[int]) -> str:
            return tokenizer.decode(ids, skip_special_tokens=True)

        return _Decoding(whole, str, frozenset(), "unknown", None)
    added = backend.get_added_tokens_decoder()
    skipped = frozenset(index for index, token in added.items() if token.special)
    token = functools.lru_cache(maxsize=None)(backend.id_to_token)
    kind = _kind(backend.decoder)
    cleans = tokenizer.clean_up_tokenization_spaces and (
        type(backend.model).__name__ != "BPE"
        or tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output
    )
    clean_up = tokenizer.clean_up_tokenization if cleans else None
    return _Decoding(backend.decode, token, skipped, kind, clean_up)


def _kind(decoder: Any) -> str:
    """`bytes`, `tokens` where each token's text is decided by itself and those before, else ''."""
    if decoder is None:
        return "tokens"

    fields = parse_json(decoder.__getstate__())
    stages = fields.get("decoders", [fields])
    if [stage["type"] for stage in stages] == ["ByteLevel"]:
        return "bytes"
    fused = False
    for stage in stages:
        if not _by_token(stage, fused):
            return "unknown"
        fused = fused or stage["type"] == "Fuse"
    return "tokens"


def _by_token(stage: dict[str, Any], fused: bool) -> bool:
    """Whether a stage of a decoder changes no text before the last token."""
    kind = stage["type"]
    if kind == "Replace" and fused:  # across tokens, unless it replaces a single character
        return len(stage["pattern"].get("String", "--")) == 1
    if kind == "Strip" and fused:
        return stage["stop"] == 0
    return kind in {"Replace", "Strip", "Fuse", "ByteFallback", "Metaspace", "WordPiece"} or (
        kind == "BPEDecoder" and not fused
    )


class _Bytes:
    """Byte-level: characters are whole when their bytes are."""

    def __init__(self, decoding: _Decoding, prompt_ids: Sequence[int]) -> None:
        self._decoding = decoding
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        tail = b""
        for token_id in reversed(prompt_ids):
            tail = self._spelled(token_id) + tail
            if len(tail) >= 4:  # a character has no more bytes
                break
        self._decoder.decode(tail)

    def push(self, token_id: int) -> str:
        return self._decoder.decode(self._spelled(token_id))

    def held(self) -> str:
        return self._decoder.getstate()[0].decode("utf-8", "replace")

    def _spelled(self, token_id: int) -> bytes:
        token = self._decoding.token(token_id)
        if token is None or token_id in self._decoding.skipped:
            return b""
        alphabet = byte_alphabet()
        if all(letter in alphabet for letter in token):
            return bytes(alphabet[letter] for letter in token)
        return token.encode()


class _Window:
    """A token is decoded with those right before it, which decide how its text begins."""

    def __init__(self, decoding: _Decoding, prompt_ids: Sequence[int]) -> None:
        self._decoding = decoding
        self._window: list[int] = []
        self._known = 0  # tokens of the window whose text was handed out
        self._keep(decoding.shown(prompt_ids))

    def push(self, token_id: int) -> str:
        if not self._decoding.shown([token_id]):
            return ""
        self._window.append(token_id)
        if self._is_byte(token_id):
            return ""
        text = self.held()
        self._keep(self._window)
        return text

    def held(self) -> str:
        decode = self._decoding.decode
        if self._known == len(self._window):
            return ""
        before = decode(self._window[: self._known])
        return decode(self._window)[len(before) :]

    def _is_byte(self, token_id: int) -> bool:
        return _BYTE_TOKEN.fullmatch(self._decoding.token(token_id) or "") is not None

    def _keep(self, ids: list[int]) -> None:
        """Keep the bytes at the end of `ids`, and enough tokens before them."""
        closed = len(ids)
        while closed and self._is_byte(ids[closed - 1]):
            closed -= 1
        size = 1
        while size < closed and not self._decides(ids[closed - size : closed]):
            size *= 2
        begin = max(0, closed - size)
        self._window, self._known = ids[begin:], closed - begin

    def _decides(self, ids: list[int]) -> bool:
        """Whether text after `ids` is the same as with all tokens before them.

        A decoder strips the beginning of the whole text: that must end within `ids`.
        """
        return not self._is_byte(ids[0]) and self._decoding.decode(ids) != ""


class _Whole:
    """Nothing is handed out: another token may change all of the text."""

    def __init__(self, decoding: _Decoding, prompt_ids: Sequence[int]) -> None:
        self._decoding, self._ids = decoding, decoding.shown(prompt_ids)

    def push(self, token_id: int) -> str:
        self._ids += self._decoding.shown([token_id])
        return ""

    def held(self) -> str:
        text = self._decoding.decode(self._ids) if self._ids else ""
        return self._decoding.clean_up(text) if self._decoding.clean_up else text


class _CleanedUp:
    """Text of another stream, with transformers' clean-up of spaces before punctuation."""

    def __init__(
        self,
        clean_up: Callable[[str], str],
        stream: _Stream,
        decoding: _Decoding,
        prompt_ids: Sequence[int],
    ) -> None:
        self._clean_up, self._stream = clean_up, stream
        shown = decoding.shown(prompt_ids)
        text = decoding.decode(shown) if shown else ""
        held = stream.held()
        self._left = text[: len(text) - len(held)]
        self._take()

    def push(self, token_id: int) -> str:
        self._left += self._stream.push(token_id)
        return self._take()

    def _take(self) -> str:
        *_, last = [0, *(found.end() for found in _CLEAN_CUT.finditer(self._left))]
        text, self._left = self._left[:last], self._left[last:]
        return self._clean_up(text)

    def held(self) -> str:
        return self._clean_up(self._left + self._stream.held())
