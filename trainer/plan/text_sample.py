"""Some text of a dataset: what an estimate of its contexts is made from.

About a megabyte, spread over the files. Importing this loads nothing heavy.
"""

from bisect import bisect_right
from collections import Counter
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from trainer.contract.step_configs import TokenizeConfig
from trainer.contract.volume import path_on_volume

if TYPE_CHECKING:
    from trainer.tokens.encode.apart import Encoded
    from trainer.tokens.text.sources import Source

SAMPLE_FILES = 64
SAMPLE_BYTES = 1 << 20
ESTIMATE_SECONDS = 60  # of a processor, for that much text: it takes less than one
PACKED_RATIO = 3.0  # text bytes for one compressed byte, where a file is read in part
BYTES_PER_TOKEN = 4.0  # of English prose, where there is no tokenizer to ask


def tokenizer_parameter(config: TokenizeConfig) -> str:
    """The one that names the tokenizer."""
    return "tokenizer" if config.tokenizer else "model"


def tokenizer_folder(config: TokenizeConfig) -> Path:
    return path_on_volume(
        config.volume, tokenizer_parameter(config), config.tokenizer or config.model
    )


def sampled(config: TokenizeConfig, sources: list["Source"]) -> tuple[list[bytes], float]:
    """Documents at the beginnings of files, and the bytes of text of the whole dataset."""
    some = beginnings(config, sources)
    # Bytes of text for a stored byte: more in a compressed file, fewer in JSON.
    text = in_all(some, sources, [float(sum(map(len, one.texts))) for one in some])
    return [document for one in some for document in one.texts], text


class Beginning(NamedTuple):
    """Documents at the beginning of a file."""

    texts: list[bytes]
    stored: float
    """Bytes of the file that they stand for."""
    weight: int
    """Of the file among those that were read."""


def beginnings(config: TokenizeConfig, sources: list["Source"]) -> list[Beginning]:
    chosen = _spread(sources)
    return [Beginning(*_beginning(s, config), weight) for s, weight in chosen.items()]


def in_all(some: list[Beginning], sources: list["Source"], figures: list[float]) -> float:
    """What the whole dataset has of something that is known of each beginning."""
    pairs = zip(some, figures, strict=True)
    weighed = sum(figure / max(1.0, one.stored) * one.weight for one, figure in pairs)
    total = sum(source.size for source in sources)
    return total * weighed / max(1, sum(one.weight for one in some))


def _spread(sources: list["Source"]) -> Counter["Source"]:
    """Files to look into, each with its weight: all, or those at even distances in bytes."""
    if len(sources) <= SAMPLE_FILES:
        return Counter({source: source.size for source in sources})
    ends = list(accumulate(source.size for source in sources))
    places = (ends[-1] * (number + 0.5) / SAMPLE_FILES for number in range(SAMPLE_FILES))
    return Counter(sources[bisect_right(ends, place)] for place in places)


def _beginning(source: "Source", config: TokenizeConfig) -> tuple[list[bytes], float]:
    """Documents at the beginning of a file, and how many stored bytes they stand for."""
    from trainer.tokens.text.parts import plan_parts
    from trainer.tokens.text.reading import read_texts

    parts = list(plan_parts(source, "", config.text_field, True))
    texts: list[bytes] = []
    taken = 0
    for text in read_texts(parts[0], checked=False):
        if text is None:  # a blank line
            continue
        texts.append(text.text)
        taken += len(text.text)
        if taken >= SAMPLE_BYTES // SAMPLE_FILES:
            packed = source.compression or source.kind == "parquet"
            return texts, min(source.size, taken / (PACKED_RATIO if packed else 1.0))
    return texts, source.size / len(parts)


def encoded_sample(
    documents: list[bytes], tokenizer: Path, config: TokenizeConfig, *before: str
) -> "Encoded":
    """The ids of the texts `before`, and of these documents."""
    from trainer.tokens.encode.apart import encode_apart
    from trainer.tokens.text.sanitize import sanitize

    texts = (sanitize(text) if config.sanitize else text for text in documents)
    decoded = [text.decode("utf-8", "ignore") for text in texts]
    return encode_apart(
        tokenizer, tokenizer_parameter(config), [*before, *decoded], ESTIMATE_SECONDS
    )
