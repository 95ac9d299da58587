"""How many token ids a tokenizer's folder uses, read from its files without transformers."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.contract.errors import RequestError, StepError
from trainer.contract.json_text import parse_json
from trainer.tokens.encode.apart import probe
from trainer.tokens.text.documents import whole_part
from trainer.tokens.text.reading import first_bytes
from trainer.tokens.text.sources import Source

_WITHOUT_IDS = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.txt")
SAMPLE_BYTES = 4096
_MEND = "Put its files there (tokenizer.json, or vocab.json and merges.txt), or set tokenizer."


_FILES = ("tokenizer.json", "vocab.json", *_WITHOUT_IDS)


def has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _FILES)


def lacks_tokenizer(folder: Path) -> bool:
    """Whether nothing has the name of a tokenizer's file."""
    return not any((folder / name).exists() for name in _FILES)


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


def check_it_encodes(folder: Path, parameter: str, volume: Path, sources: Sequence[Source]) -> None:
    """Raise RequestError unless the tokenizer.json can be loaded, and encodes in a sensible time.

    One that the tokenize step used before on this volume is known to.

    Args:
        folder: The model's or the tokenizer's folder.
        parameter: Which parameter named it, for the error.
        sources: The dataset's files, of which the first is read a little.
    """
    # Not above: it loads numpy, which the command line does without.
    from trainer.tokens.encode.vocabulary import EXPORTS, tokenizer_digest

    file = folder / "tokenizer.json"
    if not file.is_file():
        return  # transformers makes one of the other files, in the tokenize step
    with contextlib.suppress(RequestError):  # of config.json, which others say
        if (volume / EXPORTS / f"{tokenizer_digest(folder)}.json").is_file():
            return
    probe(file, parameter, _beginning(sources))


def _beginning(sources: Sequence[Source]) -> str:
    """The beginning of the dataset, where that is here and text."""
    for source in sources[:1]:
        if source.remote or source.kind not in ("text", "jsonl"):
            continue
        with contextlib.suppress(StepError):  # who reads all of it says what is wrong
            part = whole_part(source, "", "text")
            return first_bytes(part, SAMPLE_BYTES).decode("utf-8", "ignore")
    return ""


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
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:  # for instance a folder of that name
        raise ValueError(error.strerror) from error
