"""What the tokenizer is: its files' digest, its tables, the ids the request names.

The tokenizer is exported once, in a process of its own (export.py): what transformers
makes of a model's folder, as one JSON, with the facts below. After that nothing here
needs transformers.
"""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from trainer.errors import RequestError
from trainer.outcome import write_atomically
from trainer.tokens.store import file_digest

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "encoder.json",
    "vocab.bpe",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tiktoken.model",
    "tekken.json",
)
"""Files of a model's folder that decide how text is encoded."""


@dataclass(frozen=True)
class Vocabulary:
    """A model's tokenizer."""

    folder: Path
    digest: str
    """SHA-256 over the tokenizer's files and what config.json says of it."""
    tokenizer_json: str
    eos_token_id: int | None
    pad_token_id: int | None

    @cached_property
    def fields(self) -> dict[str, Any]:
        """tokenizer.json as data."""
        return json.loads(self.tokenizer_json)

    @cached_property
    def added_tokens(self) -> list[dict[str, Any]]:
        """Tokens beside the model's own vocabulary: id, content, special."""
        keys = ("id", "content", "special")
        return [{key: token[key] for key in keys} for token in self.fields["added_tokens"]]

    @cached_property
    def pieces(self) -> dict[str, int]:
        """The model's own vocabulary, as the tokenizer's file spells it."""
        vocab = self.fields["model"]["vocab"]
        if isinstance(vocab, dict):
            return vocab
        return {entry[0]: index for index, entry in enumerate(vocab)}

    @cached_property
    def size(self) -> int:
        """One more than the largest id."""
        added = [token["id"] for token in self.added_tokens]
        return 1 + max([*self.pieces.values(), *added])

    @property
    def dtype(self) -> np.dtype:
        """The smallest type of the store that holds every id."""
        return np.dtype("<u2" if self.size <= 1 << 16 else "<u4")

    def begins_inside(self) -> np.ndarray:
        """Which tokens begin inside a UTF-8 character, shape (size,), bool.

        Text is cut inside a character exactly where the next token is one of these.
        """
        inside = np.zeros(self.size, bool)
        alphabet = _byte_alphabet()
        byte_level = "ByteLevel" in json.dumps(self.fields.get("decoder"))
        for piece, index in self.pieces.items():
            if byte_level:
                first = alphabet.get(piece[:1], 0)
            else:
                named = len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")
                first = int(piece[3:5], 16) if named else 0
            inside[index] = 0x80 <= first < 0xC0
        for token in self.added_tokens:  # their content is text, not bytes
            inside[token["id"]] = False
        return inside


def _byte_alphabet() -> dict[str, int]:
    """The character by which byte-level vocabularies spell each byte.

    Source: GPT-2's encoder: printable Latin-1 as itself, the rest from U+0100 on.
    """
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(b): b for b in shown} | {chr(0x100 + i): b for i, b in enumerate(hidden)}


# --- loading ----------------------------------------------------------------------------


def tokenizer_digest(folder: Path) -> str:
    """SHA-256 over what decides the tokenizer in a model's folder; raises RequestError."""
    found = {name: file_digest(folder / name) for name in FILES if (folder / name).is_file()}
    if not found:
        raise RequestError(
            f"tokenizer has no files in {folder} (looked for {', '.join(FILES[:5])}, ...). "
            "A model's folder holds its tokenizer. Name the folder of one with tokenizer."
        )
    config = model_config(folder)
    known = {key: config.get(key) for key in ("model_type", "tokenizer_class")}
    return hashlib.sha256(json.dumps([found, known], sort_keys=True).encode()).hexdigest()


def model_config(folder: Path) -> dict[str, Any]:
    """The model's config.json, empty where there is none."""
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise RequestError(
            f"model has a config.json that is not JSON ({folder}): {error}."
        ) from error


def load_vocabulary(folder: Path, digest: str, cache: Path) -> Vocabulary:
    """The tokenizer of a model's folder, exported on first use into `cache`.

    Raises:
        RequestError: transformers can't load it, or it has no fast form.
    """
    path = cache / f"{digest}.json"
    try:
        exported = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        exported = _export(folder)
        write_atomically(path, json.dumps(exported))
    return Vocabulary(folder, digest, **exported)


def _export(folder: Path) -> dict[str, Any]:
    # In a process of its own: transformers takes seconds and 300 MB that nothing here needs.
    command = [sys.executable, "-m", "trainer.tokens.export", str(folder)]
    done = subprocess.run(
        command, capture_output=True, env=child_environment(), stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no reason given"]
        raise RequestError(
            f"tokenizer can't be loaded (got {folder}): {last[0]}. "
            "It must be one that transformers' AutoTokenizer loads in its fast form."
        )
    return json.loads(done.stdout)


def child_environment() -> dict[str, str]:
    """The environment of a child process that imports this package and goes nowhere else."""
    root = str(Path(__file__).parents[2])
    before = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        "PYTHONPATH": root + (os.pathsep + before if before else ""),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
    }


# --- the ids the request names ----------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TokenIds:
    """The ids that packing works with."""

    eot: int
    pad: int
    boundary: int | None


def resolve(vocabulary: Vocabulary, eot: str, pad: str, boundary: str) -> TokenIds:
    """The ids of the tokens that the request names; raises RequestError with all problems."""
    problems: list[str] = []

    def named(name: str, text: str) -> int | None:
        try:
            return token_id(vocabulary, name, text)
        except RequestError as error:
            problems.extend(error.problems)
            return None

    eot_id = named("eot_token", eot) if eot else vocabulary.eos_token_id
    if eot_id is None and not problems:
        problems.append(
            "eot_token is needed: the tokenizer has no end-of-text token of its own. "
            "Name one of its tokens."
        )
    pad_id = named("pad_token", pad) if pad else vocabulary.pad_token_id
    boundary_id = named("boundary_token", boundary) if boundary else None
    if problems or eot_id is None:
        raise RequestError(*problems)
    return TokenIds(eot=eot_id, pad=eot_id if pad_id is None else pad_id, boundary=boundary_id)


def token_id(vocabulary: Vocabulary, name: str, text: str) -> int:
    """The id of a token given by its text, a text that encodes to one token, or its id.

    Args:
        vocabulary: The tokenizer.
        name: The parameter, for the error.
        text: As the user typed it; backslash and n are a newline.
    """
    text = text.replace("\\n", "\n")
    for token in vocabulary.added_tokens:
        if token["content"] == text:
            return token["id"]
    from tokenizers import Tokenizer

    ids = Tokenizer.from_str(vocabulary.tokenizer_json).encode(text, add_special_tokens=False).ids
    if len(ids) == 1:
        return ids[0]
    if text in vocabulary.pieces:
        return vocabulary.pieces[text]
    if text.isdecimal() and int(text) < vocabulary.size:
        return int(text)
    raise RequestError(
        f"{name} is not one token (got {text!r}, which encodes to {len(ids)} tokens, {ids[:8]}). "
        f"It must be one token's text, or an id below {vocabulary.size:,}. Name another."
    )


def check_embeddings(vocabulary: Vocabulary, model: Path) -> None:
    """Raise RequestError where the model has no embedding for a token of the vocabulary itself.

    Tokens that were added to it get new embeddings when the model is trained.
    """
    config = model_config(model)
    embeddings = config.get("vocab_size") or config.get("text_config", {}).get("vocab_size")
    largest = max(vocabulary.pieces.values(), default=0)
    if embeddings is not None and largest >= embeddings:
        raise RequestError(
            f"tokenizer has more tokens than the model has embeddings (got ids up to "
            f"{largest:,}, and {embeddings:,} embeddings in {model}). "
            "Take the model's own tokenizer, or a model with more embeddings."
        )
