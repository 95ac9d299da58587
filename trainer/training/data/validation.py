"""The loss on the store's held-out contexts: an exact mean over all their trained tokens."""

from collections.abc import Callable

import numpy as np
from torch import Tensor

from trainer.tokens.pair_contexts import loss_terms
from trainer.tokens.store import TokenStore
from trainer.training.data.batches import read_batch

LossOf = Callable[..., Tensor]
AddUp = Callable[..., list[float]]


def held_out(store: TokenStore) -> np.ndarray:
    """Indexes of the held-out contexts."""
    return np.arange(store.manifest.num_train_contexts, store.manifest.num_contexts)


def held_out_loss(
    loss_of: LossOf,
    store: TokenStore,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    add_up: AddUp = lambda *values: list(values),
    go_on: Callable[[], bool] = lambda: True,
    contexts: np.ndarray | None = None,
) -> float | None:
    """The mean loss over the held-out tokens, or pairs; None where there are none, or when stopped.

    Args:
        loss_of: Summed loss of what is given of a batch: see Batch.
        add_up: Sums values over the processes.
        go_on: Asked before each batch, by every process alike.
        contexts: Which; None: all that are held out.
    """
    contexts = held_out(store) if contexts is None else contexts
    terms = loss_terms(store, contexts)
    if not terms:
        return None
    total = 0.0
    stride = batch_size * world
    for start in range(0, len(contexts), stride):
        if not go_on():
            return None
        first = start + rank * batch_size
        batch = read_batch(store, contexts[first : first + batch_size])
        total += float(loss_of(*batch.given))
    return add_up(total)[0] / terms
