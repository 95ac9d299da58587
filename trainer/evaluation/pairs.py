"""What evaluation says of pairs of answers: how the finetuned model's rewards tell them apart.

A reward is what finetuning changed in an answer's log-probability, times beta. So the base model's
own are all 0, and its loss is log 2: what a model scores that has learned nothing.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from trainer.tokens.store import TokenStore


def log_probs_of(
    model: Any, store: TokenStore, batch_size: int, on_pairs: Callable[[int], None]
) -> np.ndarray:
    """The log-probability of each held-out answer, (pairs, 2), the better one's first; float64.

    Args:
        on_pairs: Told how many pairs are done.
    """
    import torch

    from trainer.training.data.batches import read_pairs
    from trainer.training.data.validation import held_out
    from trainer.training.engine.preference import PreferenceLoss

    module = PreferenceLoss(model, beta=1.0)
    contexts, found = held_out(store), []
    for start in range(0, len(contexts), batch_size):
        on_pairs(min(start + batch_size, len(contexts)))
        batch = read_pairs(store, contexts[start : start + batch_size])
        given = (batch.ids, batch.lengths, batch.trained)
        with torch.no_grad():
            answers = module(*(None if part is None else part.to(model.device) for part in given))
        found.append(answers.cpu().numpy())
    return np.concatenate(found) if found else np.empty((0, 2))


def compared_pairs(base: np.ndarray, finetuned: np.ndarray, beta: float) -> dict[str, Any]:
    """Both losses, and the shares of pairs that are told apart; of no pairs None.

    Args:
        base: The base model's log-probabilities, (pairs, 2).
        finetuned: The finetuned model's.
    """
    if not len(base):
        return {"base_loss": None, "loss": None}
    change = finetuned - base
    margins = beta * (change[:, 0] - change[:, 1])
    return {
        "base_loss": math.log(2),
        "loss": float(np.logaddexp(0, -margins).mean()),
        "pairs": {
            "beta": beta,
            "reward_margin": float(margins.mean()),
            "reward_accuracy": float((margins > 0).mean()),
            "base_likelier": float((base[:, 0] > base[:, 1]).mean()),
            "likelier": float((finetuned[:, 0] > finetuned[:, 1]).mean()),
        },
    }


def in_words(pairs: Mapping[str, Any]) -> str:
    """The shares for people."""
    return (
        f"rewards prefer the better answer in {pairs['reward_accuracy']:.1%}, which is likelier "
        f"than the worse one in {pairs['base_likelier']:.1%} before, {pairs['likelier']:.1%} after"
    )


def rows(pairs: Mapping[str, Any]) -> list[str]:
    """Rows of the report's table: figure, base, finetuned."""
    return [
        f"| reward margin | 0 | {pairs['reward_margin']:.4f} |",
        f"| better answer preferred | - | {pairs['reward_accuracy']:.1%} |",
        f"| better answer likelier | {pairs['base_likelier']:.1%} | {pairs['likelier']:.1%} |",
    ]
