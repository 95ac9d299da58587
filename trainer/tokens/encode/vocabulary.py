"""What the tokenizer is: its files' digest, its tables, the ids the request names.

The tokenizer is exported once, in a process of its own (export.py): what transformers and
tokenizer.json make of a folder, as one JSON. What packing asks of it is kept beside that, so
that the next store reads neither; both are named by the digest of the files.
"""

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from trainer.contract.errors import RequestError
from trainer.contract.files import write_atomically
from trainer.contract.json_text import parse_json
from trainer.tokens.beginning import before_document
from trainer.tokens.byte_level import byte_alphabet
from trainer.tokens.encode.apart import child_environment
from trainer.tokens.model_tokenizer import changes_stores, pieces_of
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
EXPORTS = "cache/tokens/tokenizers"
"""Where tokenizers are exported to on the volume, each named by its digest."""
_FACTS_FORMAT = 3
_TOKENIZER_FORMAT = 2
"""In the digest of tokenizers whose ids, or whose beginning of a text, were others before."""


@dataclass(frozen=True)
class Vocabulary:
    """A model's tokenizer."""

    digest: str
    """SHA-256 over the tokenizer's files and what config.json says of it."""
    path: Path
    """Its export; files of the same stem lie beside it."""
    eos_token_id: int | None
    pad_token_id: int | None
    bos_token_id: int | None
    size: int
    """One more than the largest id."""
    largest: int
    """The largest id of the model's own vocabulary, without added tokens."""
    added_tokens: list[dict[str, Any]]
    """Tokens beside the model's own vocabulary: id, content, special."""
    inside: str
    """See `begins_inside`: a bit for each token, in hex."""
    before: list[int]
    """What every document begins with: what the tokenizer puts before a text, or data.bos asks."""
    notice: str
    """What a user has to know of it; often nothing."""

    @cached_property
    def tokenizer_json(self) -> str:
        """tokenizer.json as transformers makes it: megabytes."""
        return parse_json(self.path.read_text(encoding="utf-8"))["tokenizer_json"]

    def beginning(self, bos: str, name: str) -> "Vocabulary":
        """The same, of this name, whose documents begin as data.bos asks; raises RequestError."""
        before = before_document(bos, self.before, self.bos_token_id, name)
        return replace(self, before=before)

    @property
    def dtype(self) -> np.dtype:
        """The smallest type of the store that holds every id."""
        return np.dtype("<u2" if self.size <= 1 << 16 else "<u4")

    def begins_inside(self) -> np.ndarray:
        """Which tokens begin inside a UTF-8 character, shape (size,), bool.

        Text is cut inside a character exactly where the next token is one of these.
        """
        bits = np.frombuffer(bytes.fromhex(self.inside), np.uint8)
        return np.unpackbits(bits, count=self.size).astype(bool)


def _facts(exported: dict[str, Any]) -> dict[str, Any]:
    """The fields of a Vocabulary that take a look at all of its tokens."""
    fields = parse_json(exported["tokenizer_json"])
    keys = ("id", "content", "special")
    added = [{key: token[key] for key in keys} for token in fields["added_tokens"]]
    pieces = pieces_of(fields)
    largest = max(pieces.values(), default=0)
    size = 1 + max([largest, *(token["id"] for token in added)])
    inside = np.zeros(size, bool)
    first_byte = _first_byte(fields)
    for piece, index in pieces.items():
        inside[index] = 0x80 <= first_byte(piece) < 0xC0
    for token in added:  # their content is text, not bytes
        inside[token["id"]] = False
    return {
        "eos_token_id": exported["eos_token_id"],
        "pad_token_id": exported["pad_token_id"],
        "bos_token_id": exported["bos_token_id"],
        "size": size,
        "largest": largest,
        "added_tokens": added,
        "inside": np.packbits(inside).tobytes().hex(),
        "before": exported.get("before", []),
        "notice": exported.get("notice", ""),
    }


def _first_byte(fields: dict[str, Any]) -> Callable[[str], int]:
    """What tells the first byte of a token from its spelling; 0: ASCII, or not known."""
    alphabet = byte_alphabet()
    if "ByteLevel" in json.dumps(fields.get("decoder")):
        return lambda piece: alphabet.get(piece[:1], 0)
    named = re.compile("<0x([0-9A-F]{2})>")
    return lambda piece: int(found[1], 16) if (found := named.fullmatch(piece)) else 0


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
    decides: list[Any] = [found, known]
    if changes_stores(folder):
        decides.append(_TOKENIZER_FORMAT)
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def model_config(folder: Path) -> dict[str, Any]:
    """The model's config.json, empty where there is none."""
    try:
        return dict(parse_json((folder / "config.json").read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        raise RequestError(
            f"model has a config.json that is no JSON object ({folder}): {error}."
        ) from error


def load_vocabulary(folder: Path, digest: str, cache: Path) -> Vocabulary:
    """The tokenizer of a model's folder, exported on first use into `cache`.

    Raises:
        RequestError: transformers can't load it, or it has no fast form.
    """
    path = cache / f"{digest}.json"
    beside = cache / f"{digest}.facts-{_FACTS_FORMAT}"
    if path.is_file() and (facts := _read_object(beside)):
        return Vocabulary(digest, path, **facts)
    exported = _read_object(path)
    if "bos_token_id" not in exported:  # none, or one of an earlier version
        exported = _export(folder)
        write_atomically(path, json.dumps(exported))
    facts = _facts(exported)
    write_atomically(beside, json.dumps(facts))
    return Vocabulary(digest, path, **facts)


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object of the cache, or an empty one."""
    try:
        return dict(parse_json(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError):
        return {}


def _export(folder: Path) -> dict[str, Any]:
    # In a process of its own: transformers takes seconds and 300 MB that nothing here needs.
    command = [sys.executable, "-P", "-m", "trainer.tokens.encode.export", str(folder)]
    done = subprocess.run(
        command, capture_output=True, env=child_environment(), stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or ["no reason given"]
        raise RequestError(
            f"tokenizer can't be loaded (got {folder}): {last[0]}. "
            "It must be one that transformers' AutoTokenizer loads in its fast form."
        )
    return parse_json(done.stdout)


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
    # Loading a tokenizer to ask it for three ids takes longer than to encode 10 MB.
    remembered = vocabulary.path.with_suffix(f".ids-tokenizers-{version('tokenizers')}")
    ids = _read_object(remembered)

    def named(name: str, text: str) -> int | None:
        try:
            if text not in ids:
                ids[text] = token_id(vocabulary, name, text)
                write_atomically(remembered, json.dumps(ids))
            return ids[text]
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
    pieces = pieces_of(parse_json(vocabulary.tokenizer_json))
    if text in pieces:
        return pieces[text]
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
    if embeddings is not None and vocabulary.largest >= embeddings:
        raise RequestError(
            f"tokenizer has more tokens than the model has embeddings (got ids up to "
            f"{vocabulary.largest:,}, and {embeddings:,} embeddings in {model}). "
            "Take the model's own tokenizer, or a model with more embeddings."
        )
