"""The loss of a finished model on a store's held-out contexts."""

from pathlib import Path

import torch

from trainer.contract import events
from trainer.models import load_model
from trainer.tokens.store import TokenStore
from trainer.training.data.validation import held_out, held_out_loss
from trainer.training.engine.loss import CausalLoss

BATCH = 4


def loss_of_model(
    final: Path, store: TokenStore, label: str, trust_remote_code: bool = False
) -> float | None:
    """The mean loss over the held-out tokens; None where there are none.

    Args:
        label: Of the progress that is reported.
    """
    assert not store.manifest.of_pairs, "refused before: it takes the base model as well"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.float32 if device == "cpu" else None
    model = load_model(final, dtype=dtype, trust_remote_code=trust_remote_code).to(device)
    loss_of, total, done = CausalLoss(model), len(held_out(store)), 0

    def counted(ids: torch.Tensor, *more: torch.Tensor | None) -> torch.Tensor:
        nonlocal done
        done = min(total, done + len(ids))
        events.progress(label=label, done=done, total=total, unit="contexts")
        return loss_of(*(part if part is None else part.to(device) for part in (ids, *more)))

    with torch.no_grad():
        return held_out_loss(counted, store, BATCH)
