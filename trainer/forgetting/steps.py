"""Which steps trained on some contexts, and from which checkpoint to repeat a run without them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.contract.checkpoints import name_of, steps_there
from trainer.contract.errors import RequestError
from trainer.contract.run_folder import RunFolder
from trainer.contract.sealed_folder import read_manifest, verify
from trainer.training.plan import TrainingPlan


def steps_with(plan: TrainingPlan, contexts: np.ndarray) -> dict[int, list[int]]:
    """The contexts among `contexts` that each step trains on, by the step's number, from 1.

    Costs the order of each epoch once: some 10 million contexts a second.
    """
    wanted, found = np.zeros(plan.num_contexts, bool), {}
    wanted[contexts] = True
    for step in range(plan.steps):
        of_step = plan.kept(plan.contexts_of(step))
        if (hit := of_step[wanted[of_step]]).size:
            found[step + 1] = sorted(int(context) for context in hit)
    return found


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where the repetition begins."""

    step: int
    """Steps that are done there; 0: the base model."""
    place: Path | None
    """The checkpoint; None: the base model."""


def start_before(run: RunFolder, first: int | None) -> Start:
    """The newest good checkpoint that no step from number `first` on has touched.

    Args:
        first: The first step that trained on what is to be left out; None: none did.
    Raises:
        RequestError: It would begin before the run was forked.
    """
    for step in reversed(steps_there(run.checkpoints)):
        place = run.checkpoints / name_of(step)
        if (first is None or step < first) and not verify(place):
            return Start(step=step, place=place)
    if forked := (run.record() or {}).get("forked_from"):
        raise RequestError(
            f"{run.root.name} was forked from step {forked['step']} of {forked['run']}, and has no "
            "checkpoint before the first step that trained on the documents. Let "
            f"{forked['run']} forget them first, then fork again."
        )
    return Start(step=0, place=None)


def records_at(start: Start) -> dict[str, int]:
    """Bytes of the run's growing files at the checkpoint."""
    return read_manifest(start.place).about["records"] if start.place else {}
