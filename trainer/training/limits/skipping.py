"""Steps whose loss or gradient is not finite: left out, and what was in them is named."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.contract.errors import StepError
from trainer.tokens.store import TokenStore
from trainer.training.engine.engine import Engine
from trainer.training.plan import TrainingPlan

SKIPPED_IN_ROW = 3  # after that many the run goes back to its last checkpoint, once


class BadNumbersError(StepError):
    """Step after step was not finite; ends the run unless it can go back."""

    def __init__(self, step: int, run_name: str) -> None:
        super().__init__(
            f"the loss or gradient of steps {step - SKIPPED_IN_ROW + 1} to {step} is not finite. "
            "skipped.jsonl names their contexts and documents. Look at these documents, take "
            "a lower learn_rate or more warmup_ratio, or a precision with more range (bf16, fp32). "
            f"To see each context and layer: finetune replay {run_name} "
            f"--from {step - SKIPPED_IN_ROW + 1} --to {step}"
        )


def suspects_of(
    engine: Engine, plan: TrainingPlan, contexts: np.ndarray, losses: list[Tensor]
) -> np.ndarray | None:
    """The contexts that may have made a step's numbers bad.

    Args:
        contexts: All of the step.
        losses: Of this process' micro-batches.
    Returns:
        Those of the micro-batches whose loss is not finite; all, where only the gradient
        is not; None where it was but fp16's loss scale, which is lowered and tried again.
    """
    rank, world = engine.options.rank, engine.options.world
    flags = np.zeros((len(losses), world))
    flags[:, rank] = [not bool(torch.isfinite(loss)) for loss in losses]
    bad = np.array(engine.sum_over_processes(*flags.reshape(-1))).reshape(flags.shape) > 0
    if not bad.any():
        return None if engine.loss_scale_was_lowered else plan.kept(contexts)
    shares = [plan.share(contexts, r, world) for r in range(world)]
    return np.concatenate([shares[r][micro] for micro, r in np.argwhere(bad)])


def skipped_line(store: TokenStore, step: int, contexts: np.ndarray) -> dict[str, Any]:
    """One line of skipped.jsonl."""
    spans = [span for index in contexts for span in store.document_of(int(index))]
    return {
        "step": step,
        "contexts": [int(index) for index in contexts],
        "documents": sorted({f"{span.path}#{span.number}" for span in spans}),
    }
