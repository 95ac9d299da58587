"""Batches of contexts as tensors, read ahead of their use."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from trainer.tokens.pair_contexts import text_lengths
from trainer.tokens.store import TokenStore

# Contexts end where their text does, rounded up so that few different shapes occur.
LENGTH_MULTIPLE = 64


@dataclass(frozen=True)
class Batch:
    """A micro-batch; `ids` is (B, T), `lengths` (B,) says how many of each row are text."""

    ids: Tensor
    lengths: Tensor
    trained: Tensor | None = None
    """(B, T), bool: the ids that are trained, of chats; None: all text but each row's first id."""
    positions: Tensor | None = None
    """(B, T): of each id in its document, where several are in a row; None: one is in each."""

    reference: Tensor | None = None
    """Of pairs, whose rows are two each: log-probabilities of both answers by the base, (P, 2)."""

    @property
    def given(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """What a loss is computed of: see CausalLoss.forward, PreferenceLoss.forward."""
        return self.ids, self.lengths, self.trained, self.positions, self.reference

    def pinned(self) -> "Batch":
        """The ids where a GPU copies them from while its host continues."""
        positions = None if self.positions is None else self.positions.pin_memory()
        return replace(self, ids=self.ids.pin_memory(), positions=positions)


def read_batch(store: TokenStore, contexts: np.ndarray, rows: int = 0) -> Batch:
    """The contexts' ids, cut to the longest text; one row of nothing where there are none.

    Every process has to take part in a micro-batch, with or without contexts of its own.

    Args:
        rows: Make it so many whole contexts, empty ones with them; 0: what is needed.
    """
    if store.manifest.of_pairs:
        return read_pairs(store, contexts, rows)
    if rows:
        lengths = np.zeros(rows, dtype=np.int64)
        lengths[: len(contexts)] = store.lengths[contexts]
        ids = np.zeros((rows, store.manifest.context), dtype=np.int64)
        ids[: len(contexts)] = store.contexts[contexts]
        trained = store.trained(contexts)
        if trained is not None:
            trained = np.concatenate([trained, np.zeros_like(ids[len(contexts) :], dtype=bool)])
        positions = store.positions(contexts)
        if positions is not None:
            row = np.arange(store.manifest.context)
            positions = np.concatenate([positions, np.tile(row, (rows - len(contexts), 1))])
        return _batch(ids, lengths, trained, positions)
    if not len(contexts):
        nothing = np.zeros((1, 2), np.int64)
        positions = np.arange(2)[None] if store.manifest.packed else None
        return _batch(nothing, np.zeros(1, np.int64), None, positions)
    lengths = store.lengths[contexts].astype(np.int64)
    longest = max(2, int(lengths.max()))
    width = min(-(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE, store.manifest.context)
    ids = store.contexts[contexts, :width].astype(np.int64)
    found = (store.trained(contexts), store.positions(contexts))
    return _batch(ids, lengths, *(None if part is None else part[:, :width] for part in found))


def _batch(ids: np.ndarray, lengths: np.ndarray, *more: np.ndarray | None) -> Batch:
    parts = (
        None if part is None else torch.from_numpy(np.ascontiguousarray(part)) for part in more
    )
    return Batch(torch.from_numpy(ids), torch.from_numpy(lengths), *parts)


def read_pairs(store: TokenStore, contexts: np.ndarray, pairs: int = 0) -> Batch:
    """Pairs as rows of their own, the better answer first, each cut to the longest text.

    Args:
        pairs: Make it so many, of whole contexts, empty ones with them; 0: what is needed.
    """
    count = max(1, pairs or len(contexts))
    lengths = np.zeros(2 * count, np.int64)
    lengths[: 2 * len(contexts)] = text_lengths(store, contexts)
    width = max(2, int(lengths.max()))
    width = min(-(-width // LENGTH_MULTIPLE) * LENGTH_MULTIPLE, store.manifest.context)
    width = store.manifest.context if pairs else width
    ids, trained = np.zeros((2 * count, width), np.int64), np.zeros((2 * count, width), bool)
    marked = store.trained(contexts)
    assert marked is not None, "pairs have a mask"
    for pair, context in enumerate(contexts):
        chosen, rejected = lengths[2 * pair : 2 * pair + 2]
        for row, begin, length in ((2 * pair, 0, chosen), (2 * pair + 1, chosen, rejected)):
            ids[row, :length] = store.contexts[context, begin : begin + length]
            trained[row, :length] = marked[pair, begin : begin + length]
    batch = _batch(ids, lengths, trained)
    if store.reference is None:
        return batch
    reference = np.zeros((count, 2))
    reference[: len(contexts)] = store.reference[contexts]
    return replace(batch, reference=torch.from_numpy(reference))


def read_ahead(
    store: TokenStore, groups: Iterable[list[np.ndarray]], rows: int, pin: bool = False
) -> Iterator[list[Batch]]:
    """The batches of each group of micro-batches, the next group read while one is used.

    Args:
        pin: Put them into pinned memory, for a GPU.
    """

    def read(group: list[np.ndarray]) -> list[Batch]:
        batches = [read_batch(store, contexts, rows) for contexts in group]
        return [batch.pinned() for batch in batches] if pin else batches

    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as reader:
        waiting = None
        for group in groups:
            reading = reader.submit(read, group)
            if waiting is not None:
                yield waiting.result()
            waiting = reading
        if waiting is not None:
            yield waiting.result()
