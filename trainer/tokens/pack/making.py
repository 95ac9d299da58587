"""Make a store in an empty folder: encode what is not cached, pack, write the manifest."""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from trainer.contract.errors import RequestError
from trainer.tokens import store as stores
from trainer.tokens.encode.crew import Crew
from trainer.tokens.encode.encoder import Proof
from trainer.tokens.encode.encoding import Work, encoder_name, proven
from trainer.tokens.encode.pieces import LoadedPiece
from trainer.tokens.encode.supply import Supply
from trainer.tokens.encode.vocabulary import resolve
from trainer.tokens.pack.build import ContextWriter, HeldOut, shuffle
from trainer.tokens.pack.dividing import divide
from trainer.tokens.pack.ledger import adds_up
from trainer.tokens.pack.packing import Rules, first_kept
from trainer.tokens.pack.split import ShareCount, Split
from trainer.tokens.store import Manifest
from trainer.tokens.store_request import StoreRequest


def make_store(asked: StoreRequest, folder: Path, crew: Crew | None) -> None:
    """Make the whole store in `folder`, with the crew if one was begun; the manifest last."""
    with supplied(asked, crew) as (work, supply, proof):
        stores.write_manifest(folder, pack(work, supply, folder, encoder_name(proof)))


@contextlib.contextmanager
def supplied(asked: StoreRequest, crew: Crew | None) -> Iterator[tuple[Work, Supply, Proof]]:
    """What is made of plain text, the pieces of its files, and what encodes them."""
    config = asked.config
    vocabulary = asked.load_vocabulary_to_encode().beginning(config.data.bos, asked.tokenizer.name)
    boundary = "" if config.data.packing else config.boundary_token
    ids = resolve(vocabulary, config.eot_token, config.pad_token, boundary)
    work = Work(**vars(asked), vocabulary=vocabulary, ids=ids)
    hands = contextlib.nullcontext(crew) if crew else Crew(vocabulary.path, config.workers)
    with hands as crew:
        proof = proven(work, crew)
        yield work, Supply(work, proof, crew), proof


def pack(work: Work, supply: Supply, folder: Path, encoder: str) -> Manifest:
    """Write the contexts of both streams; returns the manifest."""
    config, ids, vocabulary = work.config, work.ids, work.vocabulary
    split = Split(
        share=1 - config.train_ratio,
        dataset_bytes=sum(source.size for source in work.sources),
        boundary=ids.boundary,
        begins_inside=vocabulary.begins_inside(),
    )
    writer, counts, amended = _pack_streams(work, supply, folder, split)
    if amended:
        writer.close()
        writer, counts, _ = _pack_streams(work, supply, folder, amended)
    supply.progress.end()
    digests = writer.close()
    num_train = counts.num_train_contexts
    if config.reorder == "shuffle":
        streams = [(0, num_train), (num_train, writer.num_contexts)]
        digests |= shuffle(folder, vocabulary.dtype, config.context, streams, config.random_seed)
    sources, totals = _ledger(work, counts)
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
        left_out=work.left_out,
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


def _pack_streams(
    work: Work, supply: Supply, folder: Path, split: Split
) -> tuple[ContextWriter, "Counts", Split | None]:
    """Write both streams with one split; also returns the split that would be better."""
    config, ids, dtype = work.config, work.ids, work.vocabulary.dtype
    rules = Rules(
        context=config.context, boundary=ids.boundary, boundary_index=config.boundary_index
    )
    num_files = len(work.sources)
    writer = ContextWriter(folder, dtype, config.context, ids.pad, config.sampling)
    held_out = HeldOut(folder / "held-out.ids", dtype)
    counts, share = Counts(num_files), ShareCount(split)
    writer.begin_stream(num_files, rules, split.begins_inside)
    for index in range(num_files):
        for parts in divide(counts.counted(index, supply.pieces(index)), split, share):
            writer.feed(index, *parts.of(False, writer.position, index))
            held_out.add(index, *parts.of(True, held_out.position, index))
    total = writer.position + held_out.position
    counts.train = writer.end_stream()
    counts.num_train_contexts = writer.num_contexts
    writer.begin_stream(num_files, rules, split.begins_inside, first_kept(config.sampling))
    held_out.replay(writer)
    counts.held = writer.end_stream()
    return writer, counts, share.amended(held_out.position, total, writer.num_contexts)


class Counts:
    """What is counted by file."""

    def __init__(self, num_files: int) -> None:
        self.documents = np.zeros(num_files, np.int64)
        self.empty = np.zeros(num_files, np.int64)
        self.blank_lines = np.zeros(num_files, np.int64)
        self.num_train_contexts = 0
        self.train: dict[str, np.ndarray] = {}
        self.held: dict[str, np.ndarray] = {}

    def counted(self, index: int, pieces: Iterable[LoadedPiece]) -> Iterator[LoadedPiece]:
        """The same pieces; what their footers say is counted for file `index`."""
        for piece in pieces:
            self.documents[index] += piece.facts.documents - piece.facts.empty
            self.empty[index] += piece.facts.empty
            self.blank_lines[index] += piece.facts.blank_lines
            yield piece


def _ledger(work: Work, counts: Counts) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The manifest's table of files, and its sums."""
    both = {name: counts.train[name] + counts.held[name] for name in counts.train}
    held_out = counts.held["encoded"]
    rows: list[dict[str, Any]] = []
    for index, source in enumerate(work.sources):
        count = {name: int(column[index]) for name, column in both.items()}
        assert adds_up(count), (source.path, count)
        rows.append(
            {
                "path": source.path,
                "bytes": source.size,
                "sha256": work.digests[index],
                "documents": int(counts.documents[index]),
                "tokens": count["encoded"],
                "held_out_tokens": int(held_out[index]),
                "contexts": count["contexts"],
                "in_contexts": count["in_contexts"],
                "repeated": count["repeated"],
                "dropped": {
                    "empty_documents": int(counts.empty[index]),
                    "blank_lines": int(counts.blank_lines[index]),
                    "boundaries": count["boundaries"],
                    "sampled_out": count["sampled_out"],
                },
            }
        )
    sums = {name: int(column.sum()) for name, column in both.items() if name != "contexts"}
    dropped = {name: sum(row["dropped"][name] for row in rows) for name in rows[0]["dropped"]}
    documents, held = int(counts.documents.sum()), int(held_out.sum())
    return rows, {"documents": documents, "held_out_tokens": held, **sums, **dropped}
