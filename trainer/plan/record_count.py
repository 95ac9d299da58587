"""How many chats or completions a dataset has, and how much of them is trained: an estimate.

Reads the beginnings of some files. Nothing is rendered: an answer counts as its own text and
the token that ends it. Importing this loads nothing heavy.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from trainer.contract.step_configs import TokenizeConfig
from trainer.plan.text_sample import BYTES_PER_TOKEN, PACKED_RATIO

if TYPE_CHECKING:
    from trainer.tokens.chat.conversations import Conversation
    from trainer.tokens.text.sources import Source

TOKENS_AROUND = 4  # of a turn, as its role and its end


class RecordCount(NamedTuple):
    """Estimated."""

    records: float
    trained_tokens: float
    """Of a record."""
    lengths: list[int]
    """Tokens of the records that were read, where they are packed; else empty."""


def estimate_records(
    config: TokenizeConfig,
    chosen: Sequence["Source"],
    shapes: Sequence[str],
    total_bytes: int,
    most_bytes: int,
    tokenizer: Path,
) -> RecordCount:
    """Records of a dataset, from the beginnings of some of its files.

    Args:
        chosen: Files to look into, with their shapes.
        total_bytes: Of all files, as they are stored.
        most_bytes: To read of each file.
        tokenizer: A tokenizer.json, which may not be there.
    Raises:
        RequestError: A record can't be read.
    """
    records = stored = 0.0
    texts: list[str] = []
    lengths: list[int] = []
    for source, shape in zip(chosen, shapes, strict=True):
        size, found = _beginning(source, shape, config, most_bytes)
        stored += size
        records += len(found) / (2 if shape == "preference" else 1)
        texts += [text for one in found for text in _trained_texts(one, config.data.train_on)]
        if config.data.packing:
            lengths += [_length(one, tokenizer) for one in found]
    tokens = _tokens(texts, tokenizer)
    per_record = tokens / max(1.0, records)
    return RecordCount(records * total_bytes / max(1.0, stored), per_record, lengths)


def refuse_too_long(config: TokenizeConfig, lengths: list[int]) -> None:
    """Raise RequestError where documents of these lengths will be refused when they are packed."""
    from trainer.contract.errors import RequestError

    longest = max(lengths, default=0)
    if longest > config.context and config.data.too_long == "refuse":
        count = sum(length > config.context for length in lengths)
        raise RequestError(
            f"dataset has documents that are longer than a context (got {longest:,} tokens, "
            f"context={config.context:,}; {count:,} of the {len(lengths):,} that were read). Set "
            "context higher, or data.too_long to drop or cut, or leave data.packing out."
        )


def packed_sample(config: TokenizeConfig, lengths: list[int]) -> tuple[int, float]:
    """Contexts that records of these lengths fill by best fit, and the share that is padding."""
    import numpy as np

    from trainer.tokens.packed.best_fit import best_fit

    wanted = np.array([length for length in fitting(config, lengths) if length], np.int64)
    contexts = best_fit(np.arange(len(wanted)), wanted, config.context).num_contexts
    filled = int(wanted.sum()) / (contexts * config.context) if contexts else 1.0
    return contexts, 1 - filled


def fitting(config: TokenizeConfig, lengths: list[int]) -> list[int]:
    """How many tokens of each record get into a context."""
    context, drops = config.context, config.data.too_long == "drop"
    return [0 if n > context and drops else min(n, context) for n in lengths]


def _length(conversation: "Conversation", tokenizer: Path) -> int:
    """Tokens of a record, with what a template puts around each turn."""
    texts = [str(turn.get("content", "")) for turn in conversation.turns]
    return round(_tokens(texts, tokenizer)) + TOKENS_AROUND * len(texts)


def _beginning(
    source: "Source", shape: str, config: TokenizeConfig, most_bytes: int
) -> tuple[float, list["Conversation"]]:
    """Conversations at the beginning of a file, and the stored bytes that they stand for."""
    from trainer.contract.errors import RequestError
    from trainer.tokens.chat.conversations import RecordError
    from trainer.tokens.chat.records import read_records
    from trainer.tokens.text.documents import whole_part

    found, taken = [], 0
    for record in read_records(whole_part(source, "", config.text_field)):
        if record is None:
            continue
        try:
            found += _conversations(record.value, shape, config.data.system)
        except RecordError as error:
            raise RequestError(f"dataset file {record.place} {error}.") from error
        taken += len(json.dumps(record.value))
        if taken >= most_bytes:
            packed = source.compression or source.kind == "parquet"
            return min(source.size, taken / (PACKED_RATIO if packed else 1.0)), found
    return source.size, found


def _conversations(value: Any, shape: str, system: str) -> list["Conversation"]:
    """Of a record; a pair of answers has two."""
    from trainer.tokens.chat.conversations import conversation_of

    if shape != "preference":
        return [conversation_of(value, shape, system)]
    from trainer.tokens.chat.pairs import pair_of

    return list(pair_of(value, system))


def _trained_texts(conversation: "Conversation", train_on: str) -> list[str]:
    turns = conversation.turns
    if train_on != "all":
        turns = [turn for turn in turns[conversation.begin :] if turn["role"] == "assistant"]
    texts = [str(turn.get("content", "")) for turn in turns]
    return texts[-1:] if train_on == "last" else texts


def _tokens(texts: list[str], path: Path) -> float:
    """Of all texts, one more for the end of each."""
    if not path.is_file():
        return sum(len(text.encode(errors="replace")) for text in texts) / BYTES_PER_TOKEN
    return float(sum(len(ids) + 1 for ids in _encoded(texts, path)))


def _encoded(texts: list[str], path: Path) -> Iterator[list[int]]:
    from tokenizers import Tokenizer

    encoder: Any = Tokenizer.from_file(str(path))
    encoder.no_padding()
    encoder.no_truncation()
    whole = [text.encode(errors="replace").decode() for text in texts]
    for encoding in encoder.encode_batch(whole, add_special_tokens=False):
        yield encoding.ids
