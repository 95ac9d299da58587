"""Make a store in an empty folder: encode what is not cached, pack, write the manifest."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from trainer.config import TokenizeConfig, path_on_volume
from trainer.errors import RequestError
from trainer.tokens import store as stores
from trainer.tokens.build import ContextWriter, SourcePieces, share_threshold, shuffle
from trainer.tokens.encoding import Work, encode, encoder_name, proven
from trainer.tokens.ledger import adds_up
from trainer.tokens.packing import Rules
from trainer.tokens.sources import Source
from trainer.tokens.split import Split
from trainer.tokens.store import Manifest
from trainer.tokens.vocabulary import check_embeddings, load_vocabulary, resolve


def make_store(
    config: TokenizeConfig,
    folder: Path,
    key: str,
    options: dict[str, Any],
    sources: list[Source],
    digests: list[str],
    tokenizer: Path,
    token_digest: str,
) -> None:
    """Make the whole store in `folder`; the manifest last."""
    cache = Path(config.volume) / "cache/tokens"
    vocabulary = load_vocabulary(tokenizer, token_digest, cache / "tokenizers")
    check_embeddings(vocabulary, path_on_volume(config.volume, "model", config.model))
    ids = resolve(vocabulary, config.eot_token, config.pad_token, config.boundary_token)
    work = Work(
        config=config,
        key=key,
        options=options,
        sources=sources,
        digests=digests,
        vocabulary=vocabulary,
        ids=ids,
        cache=cache,
    )
    proof = proven(work)
    manifest = pack(work, encode(work, proof), folder, encoder_name(proof))
    path = folder / stores.MANIFEST
    path.write_text(manifest.to_json(), encoding="utf-8")
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def pack(work: Work, pieces: list[SourcePieces], folder: Path, encoder: str) -> Manifest:
    """Write the contexts of both streams; returns the manifest."""
    config, ids, vocabulary = work.config, work.ids, work.vocabulary
    inside = vocabulary.begins_inside()
    split = Split(
        share=1 - config.train_ratio,
        context=config.context,
        boundary=ids.boundary,
        begins_inside=inside,
    )
    if split.share:
        split = split.with_threshold(share_threshold(pieces, split))
    rules = Rules(
        context=config.context, boundary=ids.boundary, boundary_index=config.boundary_index
    )
    writer = ContextWriter(folder, vocabulary.dtype, config.context, ids.pad, config.sampling)
    train = writer.write_stream(pieces, split, False, rules)
    num_train = writer.num_contexts
    held = writer.write_stream(pieces, split, True, rules) if split.share else None
    digests = writer.close()
    if config.reorder == "shuffle":
        parts = [(0, num_train), (num_train, writer.num_contexts)]
        digests |= shuffle(folder, vocabulary.dtype, config.context, parts, config.random_seed)
    sources, totals = _ledger(work, pieces, train, held)
    if not writer.num_contexts:
        raise RequestError(_nothing(work, totals))
    return Manifest(
        format=stores.FORMAT,
        key=work.key,
        dtype=vocabulary.dtype.name,
        context=config.context,
        num_contexts=writer.num_contexts,
        num_train_contexts=num_train,
        num_tokens=writer.num_tokens,
        num_padding=writer.num_contexts * config.context - writer.num_tokens,
        eot_token_id=ids.eot,
        pad_token_id=ids.pad,
        boundary_token_id=ids.boundary,
        vocab_size=vocabulary.size,
        tokenizer_digest=vocabulary.digest,
        added_tokens=vocabulary.added_tokens,
        encoder=encoder,
        options=work.options,
        totals=totals,
        sources=sources,
        digests=digests,
    )


def _nothing(work: Work, totals: dict[str, int]) -> str:
    if totals["encoded"]:
        return (
            f"sampling leaves no context (got {work.config.sampling}). The dataset has "
            f"{totals['encoded']:,} tokens. Take a larger share."
        )
    return (
        f"dataset has no text (got {work.config.dataset!r}, with {len(work.sources)} files and "
        f"{totals['empty_documents']:,} empty documents). Put text there."
    )


def _ledger(
    work: Work,
    pieces: list[SourcePieces],
    train: dict[str, np.ndarray],
    held: dict[str, np.ndarray] | None,
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The manifest's table of files, and its sums."""
    both = {name: train[name] + (held[name] if held else 0) for name in train}
    rows: list[dict[str, Any]] = []
    for index, source in enumerate(work.sources):
        facts = [piece.facts for piece in pieces[index].open()]
        empty = sum(fact.empty for fact in facts)
        count = {name: int(column[index]) for name, column in both.items()}
        assert adds_up(count), (source.path, count)
        rows.append(
            {
                "path": source.path,
                "bytes": source.size,
                "sha256": work.digests[index],
                "documents": sum(fact.documents for fact in facts) - empty,
                "tokens": count["encoded"],
                "held_out_tokens": int(held["encoded"][index]) if held else 0,
                "contexts": count["contexts"],
                "in_contexts": count["in_contexts"],
                "repeated": count["repeated"],
                "dropped": {
                    "empty_documents": empty,
                    "blank_lines": sum(fact.blank_lines for fact in facts),
                    "boundaries": count["boundaries"],
                    "sampled_out": count["sampled_out"],
                },
            }
        )
    sums = {name: int(column.sum()) for name, column in both.items() if name != "contexts"}
    dropped = {name: sum(row["dropped"][name] for row in rows) for name in rows[0]["dropped"]}
    documents = sum(row["documents"] for row in rows)
    held_out = sum(row["held_out_tokens"] for row in rows)
    return rows, {"documents": documents, "held_out_tokens": held_out, **sums, **dropped}
