"""Train a run again from a checkpoint, apart from it: the run itself is only read."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from trainer.contract.checkpoints import name_of, steps_there
from trainer.contract.files import link_or_copy
from trainer.contract.run_folder import RunFolder
from trainer.contract.sealed_folder import read_manifest
from trainer.contract.topics import CheckpointsConfig
from trainer.forgetting.steps import Start, records_at
from trainer.training.job import Job
from trainer.training.save.records import NAMES
from trainer.training.verify_resume import scratch_folder, train_again


@contextmanager
def scratch_run(volume: Path, run: RunFolder, job: Job, start: Start) -> Iterator[Job]:
    """What trains the run from `start` on in a folder of its own, which then goes.

    It saves one checkpoint, at its end, and writes no samples.
    """
    with scratch_folder(volume) as folder:
        below = f"cache/{folder.name}"
        scratch = RunFolder(volume, f"{below}/run")
        _prepare(run, scratch, start)
        config = replace(
            job.config,
            run_name=f"{below}/run",
            logs=f"{below}/logs",
            save_steps=0,
            checkpoints=CheckpointsConfig(keep_last=1, keep_best=False),
            prompt_file="",
            wandb_key="",
        )
        yield replace(job, config=config, from_step=start.step, end_by=0.0)


def _prepare(run: RunFolder, scratch: RunFolder, start: Start) -> None:
    scratch.root.mkdir(parents=True)
    if start.place:
        place = scratch.checkpoints / start.place.name
        shutil.copytree(start.place, place, copy_function=link_or_copy)
    sizes = records_at(start)
    for name in NAMES:
        content = (run.root / name).read_bytes() if (run.root / name).exists() else b""
        (scratch.root / name).write_bytes(content[: sizes.get(name, 0)])
    scratch.went_back.write_text("{}", encoding="utf-8")  # bad numbers end it, as they are


def train_as(run: RunFolder, job: Job) -> None:
    """Train in as many processes and threads as the run was trained in."""
    train_again(job, threads_of(run))


def threads_of(run: RunFolder) -> int:
    """Of each process that trained it, as its newest checkpoint says."""
    steps = steps_there(run.checkpoints)
    about = read_manifest(run.checkpoints / name_of(steps[-1])).about if steps else {}
    return about.get("threads", 1)
