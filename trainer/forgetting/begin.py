"""Plan a repetition without some documents, and make the folder of the new run."""

import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainer.contract.errors import RequestError
from trainer.contract.files import link_or_copy
from trainer.contract.run_folder import RunFolder
from trainer.contract.sealed_folder import verify
from trainer.contract.topics import SkipConfig
from trainer.forgetting.finding import Asked, find
from trainer.forgetting.recorded import checkpoint_digest, job_of, store_of
from trainer.forgetting.steps import records_at, start_before, steps_with
from trainer.plan.facts import step_seconds
from trainer.tokens.left_out import left_out
from trainer.tokens.pair_contexts import refuse_pairs
from trainer.training.save.records import NAMES


def plan_forgetting(volume: Path, run: RunFolder, asked: Asked) -> dict[str, Any]:
    """What forgetting would do: documents, contexts, where it begins, how long it takes.

    Raises:
        RequestError: Nothing is named, or the run can't be repeated.
    """
    record, store, job = run.record() or {}, store_of(run), job_of(run)
    refuse_pairs(store, "finetune forget")
    dataset = record["request"]["dataset"]
    found = find(store, asked, str(volume), dataset)
    skip_before = {"documents": [], "sha256": [], **record["request"].get("skip", {})}
    sha256 = [*skip_before["sha256"], *(d for d in found.digests if d not in skip_before["sha256"])]
    if sha256 == skip_before["sha256"]:
        raise RequestError(f"{run.root.name} left these documents out already. Nothing is to do.")
    skip = SkipConfig(documents=skip_before["documents"], sha256=sha256)
    omitted = left_out(store, skip, volume, dataset)
    assert omitted is not None
    steps = steps_with(job.plan, omitted.contexts)
    first = min(steps, default=None)
    start = start_before(run, first)
    seconds = step_seconds(run.metrics)
    to_do = job.plan.steps - start.step
    return {
        "documents": found.rows,
        "left_out": omitted.figures,
        "skip": {"documents": skip.documents, "sha256": sha256},
        "skip_before": skip_before,
        "requested": asked.to_record(),
        "steps": job.plan.steps,
        "steps_with_them": len(steps),
        "first_step": first,
        "from_step": start.step,
        "steps_to_do": to_do,
        "hours": None if seconds is None else seconds * to_do / 3600,
    }


def begin(
    volume: Path, run: RunFolder, name: str, planned: Mapping[str, Any], request: Mapping[str, Any]
) -> None:
    """Make the folder of the new run, with the checkpoint that it begins from; whole or not.

    Args:
        planned: As `plan_forgetting` made it.
        request: The parameters of the new run, as they define it.
    """
    new = RunFolder(volume, name)
    if new.root.exists():
        raise RequestError(f"--as is taken (got {name!r}). Take a name that no run has yet.")
    start = start_before(run, planned["first_step"])
    part = RunFolder(volume / "cache", f"forget-{name}.part")
    shutil.rmtree(part.root, ignore_errors=True)
    part.root.mkdir(parents=True)
    digest = ""
    if start.place:
        shutil.copytree(
            start.place, part.checkpoints / start.place.name, copy_function=link_or_copy
        )
        digest = checkpoint_digest(start.place)
        if problems := verify(part.checkpoints / start.place.name):
            raise RequestError(f"{start.place.name} is damaged: {'; '.join(problems)}")
    sizes = records_at(start)
    for file in NAMES:
        if (run.root / file).exists():
            (part.root / file).write_bytes((run.root / file).read_bytes()[: sizes.get(file, 0)])
    record = run.record() or {}
    forgets = {"run": run.root.name, "step": start.step, "checkpoint": digest}
    forgets |= {name: planned[name] for name in ("skip_before", "requested")}
    part.write_record(
        {
            **{key: value for key, value in record.items() if key != "left_out"},
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "attempt": "",
            "plan": {},
            "request": {**record["request"], **request},
            "config": {**record["config"], "skip": planned["skip"], "run_name": name},
            "left_out": planned["left_out"],
            "forgets": forgets,
        }
    )
    part.root.rename(new.root)
