"""The model of a run as it was at a checkpoint, to be asked for losses and gradients."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from trainer.checkpoints.tensors import SliceReader
from trainer.contract.checkpoints import name_of, steps_there
from trainer.contract.run_folder import RunFolder
from trainer.contract.sealed_folder import verify
from trainer.models.buffers import persistent_buffers
from trainer.training.data.batches import Batch
from trainer.training.engine.adapters import add_adapters
from trainer.training.engine.base import base_model
from trainer.training.engine.four_bits import quantize
from trainer.training.engine.loss import texts_in_rows, trained_places
from trainer.training.job import Job
from trainer.training.save.saving import restore_buffers

MOST_STATES = 3


@dataclass(frozen=True, kw_only=True)
class State:
    """A checkpoint, and how much of the training it stands for."""

    step: int
    place: Path | None
    """None: the base model."""
    rate: float
    """The learning rates of the steps that are nearest to it, added up."""


def states_of(run: RunFolder, job: Job) -> list[State]:
    """The checkpoints that influence is measured at, spread over those that are kept.

    The base model is one where fewer than two checkpoints are good.
    """
    places = {step: run.checkpoints / name_of(step) for step in steps_there(run.checkpoints)}
    good = [step for step, place in places.items() if not verify(place)]
    steps = good if len(good) > 1 else [0, *good]
    if len(steps) > MOST_STATES:
        at = np.linspace(0, len(steps) - 1, MOST_STATES).round().astype(int)
        steps = [steps[i] for i in at]
    nearest = np.abs(np.subtract.outer(np.arange(1, job.plan.steps + 1), steps)).argmin(1)
    rates = np.array([job.plan.learning_rate(step) for step in range(job.plan.steps)])
    return [
        State(step=step, place=places.get(step), rate=float(rates[nearest == i].sum()))
        for i, step in enumerate(steps)
    ]


def model_at(job: Job, place: Path | None) -> Any:
    """The run's model in fp32 as the checkpoint has it, in evaluation mode, on the device.

    Args:
        place: The checkpoint; None: as training begins.
    """
    lora, device = job.config.lora, "cuda" if torch.cuda.is_available() else "cpu"
    model = base_model(job, torch.float32)
    if lora is not None:
        if lora.base_bits == 4:
            quantize(model, lora.modules_to_save)
        add_adapters(model, lora, job.config.model, job.config.random_seed)
    if place is not None:
        _fill(model, SliceReader(place))
    return model.to(device).eval()


@torch.no_grad()
def _fill(model: Any, reader: SliceReader) -> None:
    for name, parameter in trained_parameters(model).items():
        numbers = np.empty(parameter.numel(), np.float32)
        reader.read(f"weight/{name}", 0, numbers, parameter.numel())
        parameter.copy_(torch.from_numpy(numbers).view(parameter.shape))
    restore_buffers(persistent_buffers(model), reader)


def trained_parameters(model: Any) -> dict[str, Tensor]:
    """What training changes, by the names that checkpoints have."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def token_losses(model: Any, batch: Batch) -> Tensor:
    """The loss of each trained token of a batch, row by row, (N,)."""
    ids = batch.ids
    places = trained_places(batch.lengths, ids.shape[1], batch.trained)
    targets = ids.flatten()[places + 1]
    positions = None if batch.positions is None else batch.positions.to(model.device)
    given = {} if positions is None else {"position_ids": positions}
    with texts_in_rows(positions):
        logits = model(input_ids=ids.to(model.device), **given, use_cache=False).logits
    chosen = logits.flatten(0, 1)[places.to(model.device)]  # (N, V)
    return functional.cross_entropy(chosen.float(), targets.to(model.device), reduction="none")
