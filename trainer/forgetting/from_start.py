"""Train a run from its very start, apart from it, and compare: the proof that needs no trust."""

from dataclasses import replace
from pathlib import Path

from trainer.contract.checkpoints import name_of
from trainer.contract.errors import DamagedError, RequestError
from trainer.contract.run_folder import RunFolder
from trainer.contract.sealed_folder import read_manifest, verify
from trainer.forgetting.recorded import job_of
from trainer.training.save.records import MEASURED
from trainer.training.verify_resume import (
    different_numbers,
    lines_of,
    scratch_folder,
    train_again,
)


def differences_from_start(volume: Path, new: RunFolder) -> list[str]:
    """What comes out otherwise when the run is trained from its first step; takes its whole time.

    Raises:
        RequestError: Its last checkpoint is gone.
    """
    job = job_of(new)
    last = new.checkpoints / name_of(job.plan.steps)
    if not last.is_dir() or verify(last):
        raise RequestError(f"{new.root.name} has no good checkpoint of its last step to compare.")
    about = read_manifest(last).about
    with scratch_folder(volume) as folder:
        below = f"cache/{folder.name}"
        scratch = RunFolder(volume, f"{below}/run")
        scratch.root.mkdir(parents=True)
        config = replace(job.config, run_name=f"{below}/run", logs=f"{below}/logs", wandb_key="")
        print(f"trains {new.root.name} from its start: {job.plan.steps} steps", flush=True)
        train_again(replace(job, config=config, until=job.plan.steps), about["threads"])
        again = scratch.checkpoints / last.name
        if not again.is_dir():
            raise DamagedError("training from the start made no last checkpoint")
        found = list(different_numbers(last, again))
        was, now = (
            [{k: v for k, v in line.items() if k not in MEASURED} for line in lines_of(run)]
            for run in (new.metrics, scratch.metrics)
        )
    if was != now:
        pairs = zip(was, now, strict=False)
        step = next((a["step"] for a, b in pairs if a != b), min(len(was), len(now)))
        found.append(f"metrics.jsonl has other lines from step {step} on")
    return found
