"""Small models' folders for the tests: tokenizers made here, and a config.json."""

import json
from functools import cache
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from tokenizers.trainers import BpeTrainer

EOT = "<|endoftext|>"
PAD = "<|pad|>"
# The pattern that Llama 3 and its kin split words by.
LLAMA = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXT = (
    "The rider came down from the ridge at noon, and the dust came with him.\n"
    "He said nothing, and nobody asked. Don't you think it's late? she'll ask: 1,234 times.\n"
    "  a\ttab, many   spaces , — dashes… “quotes” ‘too’ naïve café 日本語 中文 😀👩‍👩‍👧\n\n"
    "def f(x):\n    return x[0] + 10 # comment\\n\n"
) * 20


def save(tokenizer: Tokenizer, folder: Path, embeddings: int = 0, **special: str) -> Path:
    """Write a model's folder with this tokenizer, as Hugging Face lays it out."""
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    fields = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))
    size = embeddings or tokenizer.get_vocab_size() + 64  # models round up
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt_neox", "vocab_size": size}))
    return folder


@cache
def byte_level(pattern: str = "", vocab_size: int = 600) -> Tokenizer:
    """A byte-level BPE as GPT-2's, or with another pattern; 0 is EOT, 1 is PAD."""
    tokenizer = Tokenizer(models.BPE())
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not pattern)
    tokenizer.pre_tokenizer = by_bytes
    if pattern:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, by_bytes])
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOT, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.add_special_tokens([AddedToken("<|turn|>", normalized=False)])
    return tokenizer


def beginning() -> Tokenizer:
    """One that begins a text as Llama 3's does; its beginning is EOT's neighbour, <|turn|>."""
    tokenizer = Tokenizer.from_str(byte_level(LLAMA).to_str())
    turn = tokenizer.token_to_id("<|turn|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|turn|> $A", special_tokens=[("<|turn|>", turn)]
    )
    return tokenizer


def letters(extra: int = 0) -> Tokenizer:
    """Every letter is a token, as in the table of the rules; `#` ends text, `_` pads."""
    alphabet = "#_/abcdefghijklmnopqrstuvwxyz"
    vocab = {letter: at for at, letter in enumerate(alphabet)}
    for number in range(extra):
        vocab[f"<{number}>"] = len(vocab)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def spelled(tokenizer: Tokenizer) -> list[bytes]:
    """The bytes of each token of a byte-level tokenizer."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    alphabet = {chr(b): b for b in shown} | {chr(0x100 + at): b for at, b in enumerate(hidden)}
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    found = []
    for at in range(tokenizer.get_vocab_size()):
        piece = tokenizer.id_to_token(at)
        if piece in added:
            found.append(piece.encode())
        else:
            found.append(bytes(alphabet[letter] for letter in piece))
    return found
