"""What the records of a dataset's files are: found by their keys, or named by the request."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.contract.errors import RequestError
from trainer.contract.files import write_atomically
from trainer.contract.json_files import readable_object
from trainer.contract.step_configs import TokenizeConfig
from trainer.contract.topics import DataConfig
from trainer.tokens.chat.records import first_shape
from trainer.tokens.text.sources import ARRAY, Source
from trainer.tokens.text.unread_files import LeftOutFiles, left_out_words, with_left_out

FORMAT = 1
"""In the key of a store of records: raised when the same records would give another one."""
_PEEKED_FILES = 8
"""Of a dataset whose files are not to be opened all: enough to tell what it is."""
_RECORDS = ("chat", "completion", "preference")
PAIRS_FORMAT = 1
"""Likewise, of pairs of answers."""


def shapes_of(
    config: TokenizeConfig, sources: Sequence[Source], digests: list[str], left_out: LeftOutFiles
) -> list[str]:
    """The shape of each file: text, chat or completion; remembered by the files' content.

    Args:
        left_out: Files of the dataset that are not read.
    Raises:
        RequestError: The files do not go together, or with `data`.
    """
    if not _may_hold_records(sources):
        shapes = ["text"] * len(sources)
    elif config.data.shape:
        shapes = [_named(config.data, source) for source in sources]
    else:
        shapes = _found(config, sources, digests)
    check_shapes(config.data, config.dataset, sources, shapes, left_out)
    if (is_of_records(shapes) or config.data.packing) and config.boundary_index >= 0:
        whole = "chats and completions" if is_of_records(shapes) else "packed documents"
        raise RequestError(
            f"boundary_index has no effect on {whole} (got {config.boundary_index}): "
            "no context begins inside one. Leave it out."
        )
    return shapes


def peeked_shapes(
    data: DataConfig, sources: Sequence[Source], text_field: str
) -> tuple[list[Source], list[str]]:
    """Some files, at even distances, and what their records are: for plans and early checks."""
    step = -(-len(sources) // _PEEKED_FILES) or 1
    some = list(sources[::step])
    if data.shape:
        return some, [_named(data, source) for source in some]
    return some, _told([first_shape(source, text_field) for source in some])


def _may_hold_records(sources: Sequence[Source]) -> bool:
    return any(s.kind != "text" or s.path.lower().endswith(".json") for s in sources)


def _named(data: DataConfig, source: Source) -> str:
    is_plain = source.kind in ("text", "tokens") and not source.path.lower().endswith(".json")
    return "text" if is_plain else data.shape


def _found(config: TokenizeConfig, sources: Sequence[Source], digests: list[str]) -> list[str]:
    named = hashlib.sha256(f"{FORMAT} {config.dataset} {config.text_field}".encode()).hexdigest()
    path = Path(config.volume) / "cache/tokens/shapes" / f"{named[:16]}.json"
    known = readable_object(path, dict[str, str]) or {}
    kinds = [f"{source.kind} {digest}" for source, digest in zip(sources, digests, strict=True)]
    found = {
        kind: known.get(kind) or first_shape(source, config.text_field)
        for kind, source in zip(kinds, sources, strict=True)
    }
    if found != known:
        write_atomically(path, json.dumps(found))
    return _told([found[kind] for kind in kinds])


def _told(shapes: list[str]) -> list[str]:
    """The same; files without a record are as the others."""
    others = next(filter(None, shapes), "text")
    return [shape or others for shape in shapes]


def is_of_records(shapes: Sequence[str]) -> bool:
    """Whether a store of these files is one of chats and completions."""
    return any(shape in _RECORDS for shape in shapes)


def check_shapes(
    data: DataConfig,
    dataset: str,
    sources: Sequence[Source],
    shapes: Sequence[str],
    left_out: LeftOutFiles,
) -> None:
    """Raise RequestError where files do not go together, or `data` has no effect on them."""
    if data.packing and any(source.kind == "tokens" for source in sources):
        raise RequestError(
            f"data.packing has no effect on a file of tokens (got {dataset!r}): its contexts are "
            "made. Leave it out, or name the text."
        )
    texts = [s.path for s, shape in zip(sources, shapes, strict=True) if shape == "text"]
    arrays = [s for s in sources if s.kind == ARRAY and s.path in texts]
    if arrays:
        raise RequestError(
            f"dataset has no file to read (got {dataset!r}, with "
            f"{left_out_words(with_left_out(left_out, arrays))}). The .json is no JSON array of "
            "chats or completions. Plain text is read from .txt, .md, .jsonl and .parquet. "
            "Write it as one of these, or name what its records are with data.shape."
        )
    records = [s.path for s, shape in zip(sources, shapes, strict=True) if shape in _RECORDS]
    if records and texts:
        raise RequestError(
            f"dataset mixes plain text and records of turns (got {texts[0]} and {records[0]}). "
            "A store is made of one of the two. Put them into two folders."
        )
    if records and data.bos:
        raise RequestError(
            f"data.bos has no effect on chats and completions (got {data.bos!r}, and {dataset!r} "
            f"has them in {records[0]}). Their template writes what they begin with. Leave it out."
        )
    if not records and (unused := data.of_records()):
        raise RequestError(
            f"data.{unused[0]} has no effect on plain text (got {dataset!r}, with no chats or "
            f"completions). Leave {' and '.join(f'data.{name}' for name in unused)} out."
        )
    if not records and data.is_of_records:
        raise RequestError(
            f"data.shape is not that of the dataset (got {data.shape!r}, and {dataset!r} has "
            "files of plain text alone). Records are read from .jsonl, .json and .parquet."
        )


def as_arrays(sources: Sequence[Source], shapes: Sequence[str]) -> list[Source]:
    """The files of records; a single .json file was listed as plain text, which it is not."""
    pairs = zip(sources, shapes, strict=True)
    return [
        source._replace(kind=ARRAY) if source.kind == "text" and shape in _RECORDS else source
        for source, shape in pairs
    ]


# --- the key of a store -----------------------------------------------------------------


def record_options(config: TokenizeConfig, template: tuple[str, str], order: str) -> dict[str, Any]:
    """The options that can change a byte of a store of records.

    Args:
        template: The texts of the two templates; see template_texts.
        order: Of the files, as stores name it.
    """
    data = config.data
    return {
        "reorder": order,
        "random_seed": config.random_seed if order in ("random", "shuffle") else None,
        "sampling": config.sampling,
        "eot_token": config.eot_token,
        "pad_token": config.pad_token,
        "context": config.context,
        "train_ratio": config.train_ratio,
        "records": {
            "format": FORMAT,
            "train_on": data.train_on,
            "too_long": data.too_long,
            "system": data.system,
            "templates": [hashlib.sha256(text.encode()).hexdigest() for text in template],
            **({"pairs": PAIRS_FORMAT} if data.is_of_pairs else {}),
        },
    }


def record_key(text_key: str, shapes: Sequence[str]) -> str:
    """The key of a store of records, from the one that its files and options give by themselves."""
    return hashlib.sha256(json.dumps([text_key, list(shapes)]).encode()).hexdigest()[:16]


def in_words(shapes: Sequence[str]) -> str:
    """How many files of each shape, for people."""
    return ", ".join(f"{shapes.count(shape):,} {shape}" for shape in sorted(set(shapes)))
