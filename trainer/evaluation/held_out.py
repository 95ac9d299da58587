"""What is measured of a model on a store's held-out contexts, by a batch after another."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from trainer.contract import events
from trainer.evaluation import pairs, parts
from trainer.evaluation.tasks import Scores
from trainer.tokens.store import TokenStore


@dataclass(frozen=True)
class Judged:
    """What was measured of a model."""

    loss: float | None = None
    """Over all held-out tokens."""
    by_part: dict[str, float | None] = field(default_factory=dict)
    """Of a mixture, by folder."""
    texts: list[list[str]] = field(default_factory=list)
    """What it writes after each prompt."""
    scores: tuple[Scores, dict[str, dict[str, bool]]] = ({}, {})
    """At tasks."""
    answers: np.ndarray | None = None
    """Of pairs, the log-probabilities of the held-out answers, (pairs, 2)."""


def on_held_out(model: Any, store: TokenStore, batch_size: int, label: str) -> Judged:
    """The model's loss on held-out text, or its log-probabilities of held-out answers."""
    import torch

    from trainer.training.data.validation import held_out, held_out_loss
    from trainer.training.engine.loss import CausalLoss

    total, done = len(held_out(store)), 0

    def told(now: int) -> None:
        events.progress(label=label, done=now, total=total, unit="contexts")

    if store.manifest.of_pairs:
        return Judged(answers=pairs.log_probs_of(model, store, batch_size, told))
    loss_of = CausalLoss(model)

    def counted(*batch: torch.Tensor | None) -> torch.Tensor:
        nonlocal done
        done = min(total, done + batch_size)
        told(done)
        return loss_of(*(part if part is None else part.to(model.device) for part in batch))

    with torch.no_grad():
        by_part = parts.losses_by_part(
            store, lambda some: held_out_loss(counted, store, batch_size, contexts=some)
        )
        if by_part:
            return Judged(parts.mean_of_parts(store, by_part), by_part)
        return Judged(held_out_loss(counted, store, batch_size))
