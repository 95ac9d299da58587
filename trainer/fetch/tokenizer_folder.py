"""How many token ids a tokenizer's folder uses, read from its files without transformers."""

import json
from pathlib import Path
from typing import Any

from trainer.errors import RequestError

_WITHOUT_IDS = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.txt")
_MEND = "Put its files there (tokenizer.json, or vocab.json and merges.txt), or set tokenizer."


def has_tokenizer(folder: Path) -> bool:
    names = ("tokenizer.json", "vocab.json", *_WITHOUT_IDS)
    return any((folder / name).is_file() for name in names)


def count_token_ids(folder: Path, parameter: str) -> int | None:
    """One more than the highest id, added tokens included; None where it can't be told.

    Args:
        folder: The model's or the tokenizer's folder.
        parameter: Which parameter named it, for the error.
    Raises:
        RequestError: There is no tokenizer, or it is damaged.
    """
    if not has_tokenizer(folder):
        raise RequestError(f"{parameter} {folder.name} has no tokenizer (got {folder}). {_MEND}")
    try:
        ids = _ids(folder)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RequestError(
            f"{parameter} {folder.name} has a damaged tokenizer ({error!r}). {_MEND}"
        ) from error
    return max(ids) + 1 if ids else None


def _ids(folder: Path) -> set[int]:
    if (folder / "tokenizer.json").is_file():
        vocabulary = _read(folder / "tokenizer.json")["model"]["vocab"]
        # Unigram models list their tokens, the others map them to ids.
        numbered = isinstance(vocabulary, dict)
        return set(vocabulary.values()) if numbered else set(range(len(vocabulary)))
    if (folder / "vocab.json").is_file():
        return set(_read(folder / "vocab.json").values())
    return set()


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
