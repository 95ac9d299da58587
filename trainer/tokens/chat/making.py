"""Make a store of chats and completions: one record a context, or packed ones.

Each record is rendered, encoded and spooled; then it is known which are held out, and the
contexts are written: those to train on first, each padded to `context`. Text is encoded as the
template gives it: it is neither sanitized nor mended, as white space means something in it.

Measured: 5,000 chats of 8 kB and 6 turns took 23 s of one core; there is one process.
"""

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from trainer.contract import events
from trainer.contract.errors import RequestError
from trainer.contract.step_configs import TokenizeConfig
from trainer.tokens import store as stores
from trainer.tokens.chat.ledger import ledger
from trainer.tokens.chat.rendering import ChatWork, RecordWork, spool_records
from trainer.tokens.chat.spool import Entries, Spool
from trainer.tokens.chat.templates import load_template
from trainer.tokens.chat.trained_parts import end_token
from trainer.tokens.chat.writing import RecordWriter
from trainer.tokens.encode.vocabulary import (
    resolve,
)
from trainer.tokens.pack.build import drawn_order
from trainer.tokens.pack.packing import first_kept, kept_by_sampling
from trainer.tokens.pack.split import ShareCount, Split
from trainer.tokens.packed.best_fit import Groups, best_fit, one_each
from trainer.tokens.store import Manifest
from trainer.tokens.store_request import StoreRequest


def make_store(asked: StoreRequest, folder: Path) -> None:
    """Make the whole store in `folder`, the manifest last.

    Raises:
        RequestError: A record can't be read, rendered or trained; it is named by file and line.
    """
    work = _work(asked)
    template = {
        "template": work.template.text,
        "with_tools": work.template.with_tools,
        "system": work.config.data.system,
    }
    with Spool(folder, work.vocabulary.dtype) as spool:
        spool_records(work, spool)
        encoder = f"tokenizers {version('tokenizers')}"
        write_store(work, spool, folder, encoder=encoder, chat=template)


def _work(asked: StoreRequest) -> ChatWork:
    config, vocabulary = asked.config, asked.load_vocabulary_to_encode()
    template = load_template(config, asked.tokenizer, asked.token_digest)
    special = [t["content"] for t in vocabulary.added_tokens if t["special"]]
    special.sort(key=len, reverse=True)  # one may begin as another does
    # What ends an answer ends a text of this model: it is to stop there.
    end = end_token(template, special)
    if not end:
        events.notice(
            "the chat template ends an answer with none of the tokenizer's special tokens: the "
            "model is not trained where to stop. Another template can be named with data.template."
        )
    eot = config.eot_token or end
    return ChatWork(
        **vars(asked),
        vocabulary=vocabulary,
        ids=resolve(vocabulary, eot, config.pad_token, ""),
        template=template,
        special=special,
    )


def write_store(
    work: RecordWork, spool: Spool, folder: Path, *, encoder: str, chat: dict[str, Any]
) -> None:
    """Write the contexts of all spooled records into `folder`, the manifest last.

    Args:
        encoder: What made the ids, with its version.
        chat: See Manifest.
    Raises:
        RequestError: Nothing is left to train on.
    """
    manifest = replace(_write(work, spool, folder), encoder=encoder, chat=chat)
    stores.write_manifest(folder, manifest)


def _write(work: RecordWork, spool: Spool, folder: Path) -> Manifest:
    """The manifest, without what the records' contents do not decide."""
    config, ids, vocabulary = work.config, work.ids, work.vocabulary
    entries = spool.entries()
    if not len(entries.length):
        raise RequestError(_nothing(work))
    train, held = _streams(config, entries, sum(source.size for source in work.sources))
    masked = config.data.train_on != "all" or bool(config.data.packing)
    width = config.context * (2 if config.data.is_of_pairs else 1)
    writer = RecordWriter(folder, vocabulary.dtype, width, ids.pad, masked=masked)
    for order, first in ((train, 0), (held, first_kept(config.sampling))):
        kept = _sampled(config, order, first)
        contexts = _contexts(config, entries, kept)
        if config.data.packing or config.data.is_of_pairs:  # a context is a stretch of the stream
            order = np.concatenate([contexts.members, np.setdiff1d(order, kept)])
        writer.write(spool, entries, order, contexts)
    if not writer.num_contexts:
        raise RequestError(
            f"sampling leaves no context (got {config.sampling}). The dataset has "
            f"{len(entries.length):,} records. Take a larger share."
        )
    sources, totals = ledger(work, entries, writer, held)
    return Manifest(
        format=stores.FORMAT,
        key=work.key,
        dtype=vocabulary.dtype.name,
        context=config.context,
        num_contexts=writer.num_contexts,
        num_train_contexts=writer.contexts[0].num_contexts,
        num_tokens=writer.num_tokens,
        num_padding=writer.num_contexts * width - writer.num_tokens,
        eot_token_id=ids.eot,
        pad_token_id=ids.pad,
        boundary_token_id=None,
        vocab_size=vocabulary.size,
        tokenizer_digest=vocabulary.digest,
        added_tokens=vocabulary.added_tokens,
        encoder="",
        options=work.options,
        totals=totals,
        sources=sources,
        digests=writer.close(),
        left_out=work.left_out,
    )


def _sampled(config: TokenizeConfig, order: np.ndarray, first: int) -> np.ndarray:
    """The records of a stream that sampling keeps; of a pair both halves, which stand together."""
    if not config.data.is_of_pairs:
        return order[kept_by_sampling(first, len(order), config.sampling)]
    pairs = order.reshape(-1, 2)
    return pairs[kept_by_sampling(first, len(pairs), config.sampling)].reshape(-1)


def _contexts(config: TokenizeConfig, entries: Entries, kept: np.ndarray) -> Groups:
    """The records that sampling keeps, by context."""
    contexts = one_each(kept)
    if config.data.packing:
        contexts = best_fit(kept, entries.length, config.context)
    if config.data.is_of_pairs:
        contexts = Groups(kept, np.arange(0, len(kept) + 1, 2))
    if config.reorder == "shuffle":
        return contexts.in_order(drawn_order(contexts.num_contexts, config.random_seed))
    return contexts


def _nothing(work: RecordWork) -> str:
    dropped = sum(counts.too_long + counts.cut_before_answer for counts in work.counts)
    because = f"all of its {dropped:,} records are too long" if dropped else "it has no record"
    return (
        f"dataset leaves nothing to train on (got {work.config.dataset!r}: {because}). "
        "Bring more records, or a larger context."
    )


def _streams(
    config: TokenizeConfig, entries: Entries, dataset_bytes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Indexes of the records that are trained, and of those held out: by their own content."""
    split = Split(
        share=1 - config.train_ratio,
        dataset_bytes=dataset_bytes,
        boundary=None,
        begins_inside=np.zeros(1, bool),
    )
    share = ShareCount(split)
    share.add(entries.content, entries.length, np.zeros(len(entries.length), bool))
    held = split.is_held(entries.content)
    total = int(entries.length.sum())
    better = share.amended(int(entries.length[held].sum()), total, len(entries.length))
    if better:
        held = better.is_held(entries.content)
    return np.flatnonzero(~held), np.flatnonzero(held)
