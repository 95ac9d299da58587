"""Contexts that are pairs of answers: two texts each, of which the loss is one term."""

import numpy as np

from trainer.contract.errors import RequestError
from trainer.tokens.store import TokenStore


def loss_terms(store: TokenStore, contexts: np.ndarray | slice) -> int:
    """Of how many terms the loss of some contexts is the mean: trained tokens, or pairs."""
    if not store.manifest.of_pairs:
        return store.trained_tokens(contexts)
    return len(store.lengths[contexts])


def text_lengths(store: TokenStore, contexts: np.ndarray) -> np.ndarray:
    """Ids of each text of some contexts, one after another, int64; a pair is two texts."""
    lengths = store.lengths[contexts].astype(np.int64)
    if not store.manifest.of_pairs:
        return lengths
    starts = store.documents["start"]
    first = np.searchsorted(starts, store.begins[contexts])
    chosen = starts[first + 1].astype(np.int64) - starts[first].astype(np.int64)
    return np.stack([chosen, lengths - chosen], axis=1).reshape(-1)


def refuse_pairs(store: TokenStore, command: str) -> None:
    """Raise RequestError where contexts are pairs of answers, which `command` can't take."""
    if store.manifest.of_pairs:
        raise RequestError(
            f"{command} is not for runs on pairs of answers (data.shape='preference'): their "
            "loss is one against the base model. To leave pairs out, make a new run with skip."
        )
