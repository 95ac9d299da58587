"""Train a run again without some contexts, apart from it, and measure a target at its end."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from trainer.blaming.states import model_at
from trainer.blaming.target import Question, measured, target_of
from trainer.contract.checkpoints import name_of
from trainer.contract.run_folder import RunFolder
from trainer.forgetting.recorded import job_of, store_of
from trainer.forgetting.steps import Start, start_before, steps_with
from trainer.replaying.scratch import scratch_run, train_as
from trainer.tokens.left_out import stretches
from trainer.training.job import Job


def without(job: Job, contexts: Sequence[int]) -> Job:
    """The same training, with these contexts left out as well."""
    gone = np.zeros(job.num_contexts, bool)
    gone[list(contexts)] = True
    for first, stop in job.left_out:
        gone[first:stop] = True
    return replace(job, left_out=stretches(np.flatnonzero(gone)))


def start_without(run: RunFolder, job: Job, contexts: Sequence[int]) -> Start:
    """The newest checkpoint that no step on these contexts has touched."""
    steps = steps_with(job.plan, np.array(contexts, np.int64))
    return start_before(run, min(steps, default=None))


def repeat(volume: Path, name: str, contexts: Sequence[int], question: Question) -> dict[str, Any]:
    """What `measured` says of the run as it would be without the contexts, and `seconds`."""
    began, run = time.monotonic(), RunFolder(volume, name)
    job, store = job_of(run), store_of(run)
    start = start_without(run, job, contexts)
    with scratch_run(volume, run, without(job, contexts), start) as again:
        train_as(run, replace(again, until=job.plan.steps))
        last = again.run.checkpoints / name_of(job.plan.steps)
        found = measured(target_of(job, store, question), model_at(job, last))
    return {**found, "seconds": time.monotonic() - began}
