"""The text of an answer is what the tokenizer decodes from its ids, whole and token by token."""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from trainer.decoding import AnswerStream, decoded_answer
from trainer.serving.engine.answer_text import AnswerText

TEXTS = ["family", " is 👩‍👩‍👧", "नमस्ते ok", "don ' t stop , he 's here .", "a  b", "\ufffd", "é\n"]
SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def byte_level() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*SPECIAL, *alphabet, "Ġa", "ing", "ðŁĺ", "Ģðł", "à¤"]
    tokenizer = Tokenizer(models.BPE({word: at for at, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def byte_fallback(*last: decoders.Decoder) -> Tokenizer:
    words = [*SPECIAL, *BYTES, "▁", *LETTERS, "▁the", "▁▁", "नम", "."]
    vocab = {word: at for at, word in enumerate(words)}
    model = models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    stages = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *last]
    tokenizer.decoder = decoders.Sequence(stages)
    return tokenizer


def unigram(**options: str) -> Tokenizer:
    words = [*SPECIAL, "▁", *LETTERS, "▁the", "▁a", "▁▁", ".", "é", "'"]
    model = models.Unigram([(word, -float(at)) for at, word in enumerate(words)], unk_id=0)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(**options)
    tokenizer.decoder = decoders.Metaspace(**options)
    return tokenizer


def word_piece(decoder: decoders.Decoder | None) -> Tokenizer:
    tails = [f"##{letter}" for letter in LETTERS]
    words = [*SPECIAL, *LETTERS, *tails, "the", "##ing", ".", ",", "'", "n't", "'s", "##.", "é"]
    vocab = {word: at for at, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if decoder:
        tokenizer.decoder = decoder
    return tokenizer


def suffixes() -> Tokenizer:
    words = [*SPECIAL, *LETTERS, *(f"{letter}</w>" for letter in LETTERS), "the</w>", ".</w>"]
    tokenizer = Tokenizer(models.BPE({word: at for at, word in enumerate(words)}, []))
    tokenizer.decoder = decoders.BPEDecoder()
    return tokenizer


KINDS = {
    "byte-level": (byte_level, {}),
    "byte fallback": (lambda: byte_fallback(decoders.Strip(" ", 1, 0)), {}),
    "byte fallback that strips two": (lambda: byte_fallback(decoders.Strip(" ", 2, 0)), {}),
    "byte fallback without strip": (byte_fallback, {}),
    "a decoder that replaces words": (lambda: byte_fallback(decoders.Replace("ab", "c")), {}),
    "unigram": (unigram, {}),
    "unigram without a prefix": (lambda: unigram(prepend_scheme="never"), {}),
    "unigram, cleaned up": (unigram, {"clean_up_tokenization_spaces": True}),
    "WordPiece": (lambda: word_piece(decoders.WordPiece()), {}),
    "WordPiece, cleaned up": (
        lambda: word_piece(decoders.WordPiece(cleanup=False)),
        {"clean_up_tokenization_spaces": True},
    ),
    "no decoder": (lambda: word_piece(None), {}),
    "suffixes": (suffixes, {}),
    "CTC": (lambda: word_piece(decoders.CTC("<unk>")), {}),
}
HELD_UNTIL_THE_END = {"a decoder that replaces words", "CTC"}


@cache
def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    make, options = KINDS[kind]
    tokenizer = make()
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.add_tokens(["<|turn|>", "é"])
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, **options)


def ids_of(tokenizer: PreTrainedTokenizerFast) -> st.SearchStrategy[list[int]]:
    """Ids of text, or any; one beyond the vocabulary too, as models that round up have."""
    numbers = st.lists(st.integers(0, len(tokenizer)), max_size=12)
    encoded = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    parts = st.lists(st.one_of(numbers, st.sampled_from(encoded)), max_size=4)
    return parts.map(lambda lists: [token for ids in lists for token in ids])


def streamed(tokenizer: PreTrainedTokenizerFast, prompt: list[int], answer: list[int]) -> list[str]:
    """The pieces of an answer; each token's text so far is what is decoded so far."""
    stream, pieces = AnswerStream(tokenizer, prompt), []
    for count, token in enumerate(answer, 1):
        pieces.append(stream.push(token))
        so_far = "".join(pieces) + stream.held()
        assert so_far == decoded_answer(tokenizer, prompt, answer[:count])
    return pieces


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None, derandomize=True)
@given(data=st.data())
def test_text_is_what_the_tokenizer_decodes(kind: str, data: st.DataObject):
    tokenizer = tokenizer_of(kind)
    prompt, answer = data.draw(ids_of(tokenizer)), data.draw(ids_of(tokenizer))
    both = tokenizer.decode([*prompt, *answer], skip_special_tokens=True)
    before = tokenizer.decode(prompt, skip_special_tokens=True) if prompt else ""
    streamed(tokenizer, prompt, answer)
    text = AnswerText(tokenizer, prompt)
    assert "".join([*map(text.push, answer), text.finish()]) == both[len(before) :]


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - HELD_UNTIL_THE_END))
def test_text_comes_while_it_is_made(kind: str):
    tokenizer = tokenizer_of(kind)
    ids = tokenizer("the cat is here", add_special_tokens=False)["input_ids"]
    pieces = streamed(tokenizer, ids, ids)
    assert sum(map(bool, pieces)) >= 3


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(data=st.data())
def test_an_answer_ends_at_the_first_token_that_completes_a_stop_sequence(
    kind: str, data: st.DataObject
):
    tokenizer = tokenizer_of(kind)
    prompt, answer = data.draw(ids_of(tokenizer)), data.draw(ids_of(tokenizer))
    whole = decoded_answer(tokenizer, prompt, answer).rstrip("\ufffd")
    begin = data.draw(st.integers(0, max(0, len(whole) - 1)))
    stop = whole[begin : begin + data.draw(st.integers(1, 3))].replace("\ufffd", "") or "x"
    text, got, count = AnswerText(tokenizer, prompt, [stop]), "", 0
    for token in answer:
        got, count = got + text.push(token), count + 1
        if text.stopped:
            break
    else:
        got += text.finish()
    expected = decoded_answer(tokenizer, prompt, answer[:count])
    assert text.stopped == (stop in expected.rstrip("\ufffd"))
    assert got == (expected[: expected.find(stop)] if text.stopped else expected)


def test_a_long_run_of_broken_bytes_is_decoded_in_step():
    """Models that were not trained write such bytes: the text of each token is looked at once."""
    tokenizer = tokenizer_of("byte-level")
    stray = tokenizer.convert_tokens_to_ids("ð")
    stream = AnswerStream(tokenizer, [])
    pieces = [stream.push(stray) for _ in range(3000)]
    assert "".join(pieces) + stream.held() == "\ufffd" * 3000
    assert max(map(len, pieces)) == 1
