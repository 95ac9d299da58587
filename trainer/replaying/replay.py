"""Replay steps of a run from a checkpoint, apart from it, and hold them to what it recorded."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from trainer.contract.errors import RequestError, StepError
from trainer.contract.run_folder import RunFolder
from trainer.forgetting.recorded import job_of
from trainer.forgetting.steps import Start, start_before
from trainer.replaying.forks import in_forks
from trainer.replaying.scratch import scratch_run, train_as
from trainer.tokens.store import TokenStore
from trainer.training.job import Job
from trainer.training.record.instruments import NAME
from trainer.training.save.records import MEASURED
from trainer.training.verify_resume import lines_of


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What came of it."""

    start: int
    """Steps done at the checkpoint that it began from; 0: the base model."""
    recorded: list[dict[str, Any]]
    """The run's own lines of the steps."""
    again: list[dict[str, Any]]
    measured: list[dict[str, Any]]
    """Lines of instruments.jsonl: see trainer/training/record/instruments.py."""
    diverged: list[str]
    """At which step, and in what; empty: the numbers are the same to the last bit."""
    stopped: str
    """Why the replay ended before its last step; empty: it did not."""
    what_if: "WhatIf | None" = None


@dataclass(frozen=True, kw_only=True)
class WhatIf:
    """The same steps with something changed, from the same checkpoint on."""

    changed: dict[str, Any]
    again: list[dict[str, Any]]
    measured: list[dict[str, Any]]
    stopped: str


def replay(
    volume: Path,
    run: RunFolder,
    first: int,
    last: int,
    changed: Mapping[str, Any] = MappingProxyType({}),
) -> Replay:
    """Run steps `first` to `last` again; the run is only read.

    Args:
        changed: Fields of the step's config that a second replay has otherwise; empty: none.
    Raises:
        RequestError: The run has no such steps, or can't be repeated.
    """
    job = job_of(run)
    recorded = steps_of(run.metrics)
    done = max(recorded, default=0)
    if not 1 <= first <= last <= done:
        raise RequestError(
            f"--from and --to are no steps of {run.root.name} (got {first} to {last}). "
            f"It has done steps 1 to {done}."
        )
    start, other = start_before(run, first), job_of(run, changed) if changed else None
    if other is not None and other.plan.steps < last:
        raise RequestError(
            f"--to is after the end of a run with these parameters (got {last}). It would have "
            f"{other.plan.steps} steps."
        )
    print(
        f"replays {run.root.name} from step {start.step + 1} to step {last}; measures from "
        f"step {first} on",
        flush=True,
    )
    what_if = _what_if(volume, run, other, start, (first, last), changed) if other else None
    again, measured, stopped = _steps_again(volume, run, job, start, (first, last))
    steps = range(start.step + 1, last + 1)
    return Replay(
        start=start.step,
        recorded=[recorded[step] for step in range(first, last + 1)],
        again=[again[step] for step in range(first, last + 1) if step in again],
        measured=measured,
        diverged=_diverged(recorded, again, steps),
        stopped=stopped,
        what_if=what_if,
    )


def _steps_again(
    volume: Path, run: RunFolder, job: Job, start: Start, ends: tuple[int, int]
) -> tuple[dict[int, dict[str, Any]], list[dict[str, Any]], str]:
    """The lines of the steps, what was measured, and why it stopped early."""
    first, last = ends
    with scratch_run(volume, run, job, start) as again:
        stopped = _trained(replace(again, until=last, measured_from=first), run)
        return steps_of(again.run.metrics), lines_of(again.run.root / NAME), stopped


def _steps_of_text(
    volume: Path, run: RunFolder, job: str, start: Start, ends: tuple[int, int]
) -> tuple[dict[int, dict[str, Any]], list[dict[str, Any]], str]:
    """As `_steps_again`, of a job as JSON: in a process of its own."""
    return _steps_again(volume, run, Job.from_json(job), start, ends)


def _what_if(
    volume: Path,
    run: RunFolder,
    job: Job,
    start: Start,
    ends: tuple[int, int],
    changed: Mapping[str, Any],
) -> WhatIf:
    # DeepSpeed trains once in a process.
    words = (volume, run, job.to_json(), start, ends)
    [(_, (again, measured, stopped))] = in_forks(_steps_of_text, [words], 1)
    lines = [again[step] for step in range(ends[0], ends[1] + 1) if step in again]
    return WhatIf(changed=dict(changed), again=lines, measured=measured, stopped=stopped)


def steps_of(metrics: Path) -> dict[int, dict[str, Any]]:
    """The lines of steps, without what is measured of the machine, by the step's number."""
    lines = lines_of(metrics) if metrics.exists() else []
    return {
        line["step"]: {name: value for name, value in line.items() if name not in MEASURED}
        for line in lines
        if "loss" in line
    }


def _trained(job: Job, run: RunFolder) -> str:
    """Train; why it stopped early, where it did."""
    try:
        train_as(run, job)
    except RequestError:
        raise
    except StepError as error:
        return str(error)
    return ""


def _diverged(
    recorded: dict[int, dict[str, Any]], again: dict[int, dict[str, Any]], steps: range
) -> list[str]:
    """The first step whose numbers came out otherwise, and which."""
    for step in steps:
        was, now = recorded[step], again.get(step)
        if now is None:
            return [f"step {step} was not reached again"]
        names = sorted(name for name in {*was} | {*now} if was.get(name) != now.get(name))
        if names:
            return [
                f"step {step}: {name} is {now.get(name)!r}, was {was.get(name)!r}" for name in names
            ]
    return []


def context_texts(store: TokenStore, tokenizer: Any, contexts: list[int]) -> dict[int, str]:
    """The text of each context."""
    found = {}
    for context in contexts:
        ids = store.contexts[context, : int(store.lengths[context])].tolist()
        found[context] = tokenizer.decode(ids)
    return found
