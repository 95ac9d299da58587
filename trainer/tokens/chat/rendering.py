"""From files of records to encoded ones: read, rendered, encoded, held to the rules, spooled."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from trainer.contract.errors import RequestError, StepError
from trainer.contract.step_configs import TokenizeConfig
from trainer.tokens.chat.conversations import RecordError, conversation_of
from trainer.tokens.chat.encoding import ChatEncoder, Encoded
from trainer.tokens.chat.ledger import RecordCounts
from trainer.tokens.chat.pairs import fitted_pair, pair_of, rendered_pair
from trainer.tokens.chat.records import Record, read_records
from trainer.tokens.chat.spool import Spool
from trainer.tokens.chat.templates import ChatTemplate
from trainer.tokens.chat.trained_parts import Rendered, rendered
from trainer.tokens.encode.encoding import Work
from trainer.tokens.encode.progress import Progress
from trainer.tokens.text.cuts import MOST_WHOLE_BYTES, PIECE_BYTES
from trainer.tokens.text.documents import whole_part
from trainer.tokens.text.sources import current_stamp, shown

_BATCH_RECORDS = 256
"""Encoded in one call, or fewer of long ones."""
_HASHED_BYTES = 1 << 16  # of a record's text, as of a document's

Numbered = tuple[Record, int, list[Rendered]]
"""A record, its number in its file, and its text; of a pair of answers two."""


@dataclass(frozen=True, kw_only=True)
class RecordWork(Work):
    """What is made of records, and what is counted meanwhile."""

    counts: list[RecordCounts] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class ChatWork(RecordWork):
    """The same, of chats and completions."""

    template: ChatTemplate
    special: list[str]


def spool_records(work: ChatWork, spool: Spool) -> None:
    """Render and encode all records."""
    encoder = ChatEncoder(work.vocabulary.tokenizer_json)
    progress = Progress("tokenize", sum(source.size for source in work.sources))
    for index, source in enumerate(work.sources):
        counts = RecordCounts()
        work.counts.append(counts)
        part = whole_part(source, work.digests[index], work.config.text_field)
        found = _rendered_records(work, index, read_records(part))
        for batch in _batches(found):
            encoded = encoder.encode([text for _, _, texts in batch for text in texts])
            progress.add(0, sum(len(one.ids) for one in encoded))
            of_records = iter(encoded)
            for record, number, texts in batch:
                ids = [next(of_records) for _ in texts]
                content = _hash("".join(text.text for text in texts))
                for kept in _fitted(work, counts, record, ids):
                    spool.add(index, number, content, kept)
        if current_stamp(source.location, source.remote) != source.stamp:
            raise StepError(
                f"{shown(source.location)} changed while it was read. "
                "Run it again when nothing writes to the dataset."
            )
        progress.add(source.size, 0)
    progress.end()


def _batches(found: Iterator[Numbered]) -> Iterator[list[Numbered]]:
    """Records that are encoded together: so many, or as many as have so much text."""
    batch: list[Numbered] = []
    size = 0
    for one in found:
        batch.append(one)
        size += sum(len(text.text) for text in one[2])
        if len(batch) == _BATCH_RECORDS or size >= PIECE_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _rendered_records(
    work: ChatWork, index: int, records: Iterator[Record | None]
) -> Iterator[Numbered]:
    """The records of a file as text, each with its number."""
    counts = work.counts[index]
    for record in records:
        if record is None:
            counts.blank_lines += 1
            continue
        counts.documents += 1
        try:
            texts = _texts(work, record.value, work.shapes[index])
        except RecordError as error:
            raise RequestError(f"dataset file {record.place} {error}.") from error
        if (longest := max(len(text.text) for text in texts)) > MOST_WHOLE_BYTES:
            raise RequestError(
                f"dataset file {record.place} is too long to encode in one piece (got "
                f"{longest:,} characters). At most {MOST_WHOLE_BYTES >> 20} Mi fit into "
                "memory. Cut it into several records."
            )
        yield record, counts.documents, texts


def _texts(work: ChatWork, value: Any, shape: str) -> list[Rendered]:
    """The text of a record; of a pair of answers both."""
    data = work.config.data
    if data.is_of_pairs:
        return rendered_pair(work.template, pair_of(value, data.system))
    conversation = conversation_of(value, shape, data.system)
    return [rendered(work.template, conversation, data.train_on, work.special)]


def _fitted(
    work: ChatWork, counts: RecordCounts, record: Record, texts: list[Encoded]
) -> list[Encoded]:
    """A record as it goes into a context; empty where it is left out, which is counted."""
    if work.config.data.is_of_pairs:
        return fitted_pair(work.config, counts, record.place, texts)
    [found] = texts
    if not found.trained.any():
        raise RequestError(
            f"dataset file {record.place} has no token to train on "
            f"(got {len(found.ids)} tokens, data.train_on={work.config.data.train_on!r}). "
            "A record needs an answer of the assistant. Take it out of the file."
        )
    kept = fitted(work.config, counts, record.place, found, len(found.ids))
    return [] if kept is None else [kept]


def fitted(
    config: TokenizeConfig, counts: RecordCounts, place: str, found: Encoded, tokens: int
) -> Encoded | None:
    """A record by the rule for long ones; None where it is left out, which is counted.

    Args:
        place: Of the record, for people.
        found: At least the first `context` of its ids.
        tokens: How many it has.
    """
    context, too_long = config.context, config.data.too_long
    counts.tokens += tokens
    if tokens <= context:
        return found
    if too_long == "refuse":
        raise RequestError(
            f"dataset file {place} is longer than a context (got {tokens:,} tokens, "
            f"context={context:,}). Set context higher, or data.too_long to drop or cut."
        )
    cut = Encoded(found.ids[:context], found.trained[:context])
    if too_long == "cut" and cut.trained.any():
        counts.cut += 1
        counts.cut_tokens += tokens - context
        return cut
    if too_long == "cut":
        counts.cut_before_answer += 1
    else:
        counts.too_long += 1
    counts.dropped_tokens += tokens
    return None


def _hash(text: str) -> int:
    head = text[:_HASHED_BYTES].encode(errors="replace")[:_HASHED_BYTES]
    return int.from_bytes(hashlib.blake2b(head, digest_size=8).digest(), "little")
