"""Batches of contexts as tensors, read ahead of their use."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainer.tokens.store import TokenStore

# Contexts end where their text does, rounded up so that few different shapes occur.
LENGTH_MULTIPLE = 64


@dataclass(frozen=True)
class Batch:
    """A micro-batch; `ids` is (B, T), `lengths` (B,) says how many of each row are text."""

    ids: Tensor
    lengths: Tensor


def trained_tokens(lengths: np.ndarray) -> int:
    """How many tokens are trained on: all text but each context's first token."""
    return int(np.maximum(lengths.astype(np.int64) - 1, 0).sum())


def read_batch(store: TokenStore, contexts: np.ndarray, rows: int = 0) -> Batch:
    """The contexts' ids, cut to the longest text; one row of nothing where there are none.

    Every process has to take part in a micro-batch, with or without contexts of its own.

    Args:
        rows: Make it so many whole contexts, empty ones with them; 0: what is needed.
    """
    if rows:
        lengths = np.zeros(rows, dtype=np.int64)
        lengths[: len(contexts)] = store.lengths[contexts]
        ids = np.zeros((rows, store.manifest.context), dtype=np.int64)
        ids[: len(contexts)] = store.contexts[contexts]
        return Batch(torch.from_numpy(ids), torch.from_numpy(lengths))
    if not len(contexts):
        return Batch(torch.zeros((1, 2), dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    lengths = store.lengths[contexts].astype(np.int64)
    longest = max(2, int(lengths.max()))
    width = min(-(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE, store.manifest.context)
    ids = store.contexts[contexts, :width].astype(np.int64)
    return Batch(torch.from_numpy(ids), torch.from_numpy(lengths))


def read_ahead(
    store: TokenStore, groups: Iterable[list[np.ndarray]], rows: int
) -> Iterator[list[Batch]]:
    """The batches of each group of micro-batches, the next group read while one is used."""

    def read(group: list[np.ndarray]) -> list[Batch]:
        return [read_batch(store, contexts, rows) for contexts in group]

    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as reader:
        waiting = None
        for group in groups:
            reading = reader.submit(read, group)
            if waiting is not None:
                yield waiting.result()
            waiting = reading
        if waiting is not None:
            yield waiting.result()
