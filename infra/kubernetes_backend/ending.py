"""How a Job ended, as a step's end: from its pods, else from the volume, else in words."""

import contextlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from infra.backend import StepEnd, StepSpec
from infra.kubernetes_backend import diagnosis
from infra.kubernetes_backend import manifests_job as manifests
from infra.kubernetes_backend.connection import Connection
from infra.kubernetes_backend.contact import Object
from infra.kubernetes_backend.watching import Seen
from trainer.contract.json_text import parse_json

EXIT_TERMINATED = 143  # of a step that was stopped
EXIT_CODES = {"refused": manifests.EXIT_REFUSED, "interrupted": EXIT_TERMINATED}
# Their keys name all that they read. The others look at what people change meanwhile.
NAMED_BY_CONTENT = ("finetune", "evaluate")


async def end_of(
    connection: Connection, spec: StepSpec, seen: Seen, volumes: Path, log: str
) -> StepEnd:
    """What is told of a Job that has ended, or went away."""
    outcome = diagnosis.outcome_of(seen.pods, done=diagnosis.is_complete(seen.job))
    if seen.gone:
        why = f"stopped: Job {manifests.name_of(spec)} was deleted"
        if crashes := diagnosis.crashes(seen.pods):
            # Nothing was saved that another run could resume from: it would fail again.
            code = diagnosis.exit_code_of(seen.pods)
            return StepEnd(exit_code=code, outcome=outcome, reason=f"{crashes}; {why}", log=log)
        return StepEnd(exit_code=EXIT_TERMINATED, outcome=outcome, reason=why, log=log)
    if diagnosis.is_complete(seen.job):
        outcome = outcome or await done_outcome(connection, spec, seen.job, volumes)
        lost = "" if outcome else "it is done, but its outcome is lost; run the same again"
        return StepEnd(exit_code=0, outcome=outcome, reason=lost, log=log)
    code, why = diagnosis.exit_code_of(seen.pods), diagnosis.why_failed(seen.job, seen.pods)
    if not any(diagnosis.has_ended(pod) for pod in seen.pods):
        outcome = _on_volume(spec, volumes, lambda found: _is_of(found, seen.job))
        code = EXIT_CODES.get((outcome or {}).get("status", ""), code)
    hopeless = diagnosis.why_hopeless(seen.pods)
    if words := diagnosis.with_image(outcome, code, hopeless, spec.image):
        outcome = {**outcome, "message": words} if outcome else None
        why = words
    return StepEnd(exit_code=code, outcome=outcome, reason=why, log=log)


async def done_outcome(
    connection: Connection, spec: StepSpec, job: Object, volumes: Path
) -> dict[str, Any] | None:
    """The outcome of a Job that is done: from its pod, else from the volume if it is here."""
    found = diagnosis.outcome_of(await connection.list_pods(job), done=True)
    return found or _on_volume(spec, volumes, lambda outcome: outcome.get("status") == "done")


def _on_volume(
    spec: StepSpec, volumes: Path, suits: Callable[[dict[str, Any]], bool]
) -> dict[str, Any] | None:
    path = volumes / spec.volume / spec.run_name / "outcomes" / f"{spec.step}.json"
    with contextlib.suppress(OSError, ValueError):
        outcome = parse_json(path.read_text(encoding="utf-8")) if spec.run_name else {}
        return outcome if outcome and suits(outcome) else None
    return None


def _is_of(outcome: dict[str, Any], job: Object) -> bool:
    """Whether the outcome of a step that did not do its work was left by a pod of the Job."""
    with contextlib.suppress(ValueError, KeyError):
        made = datetime.fromisoformat(job["metadata"]["creationTimestamp"])
        return outcome["status"] != "done" and _moment(outcome["started"]) >= made
    return False


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


async def why_not_taken(connection: Connection, spec: StepSpec, job: Object, volumes: Path) -> str:
    """Why a Job that has ended is made anew; empty: it is taken as it is, or still runs."""
    if diagnosis.is_failed(job):
        why = diagnosis.why_failed(job, await connection.list_pods(job))
        return f"the one before had failed: {why}"
    if not diagnosis.is_complete(job):
        return ""
    if stale := _why_stale(spec, job):
        return stale
    outcome = await done_outcome(connection, spec, job, volumes)
    if outcome is None:
        return "the outcome of the one before is lost"
    return _why_gone(spec, job, outcome)


def _why_stale(spec: StepSpec, job: Object) -> str:
    """Why the step has to look again whether what it made still stands; empty: it has not.

    A run of the flow that ended has settled its Jobs. One that was killed has not: what its
    training and evaluation came to is taken by the next, so that nobody asks for a GPU only
    to hear "reused". What other steps saw stands for their own run of the flow alone.
    """
    settled = job["metadata"]["annotations"].get(manifests.SETTLED_ANNOTATION, "")
    same = _is_of_same_caller(spec, job)
    if settled == manifests.SETTLED_DONE:
        return "" if same else "the one before was done for another run of the flow"
    if not same and spec.config.get("no_resume"):
        return "no_resume=true starts over"
    if spec.step in NAMED_BY_CONTENT:
        return ""
    if settled == manifests.SETTLED_FAILED:
        return "the run of the flow that it was done for has failed since"
    return "" if same else "what it saw for another run of the flow may have changed since"


def _is_of_same_caller(spec: StepSpec, job: Object) -> bool:
    return job["metadata"]["annotations"].get(manifests.ATTEMPT_ANNOTATION, "") == spec.attempt


def _why_gone(spec: StepSpec, job: Object, outcome: dict[str, Any]) -> str:
    """Why the result of a Job that is done is not on the volume any more; empty: it may be."""
    seen = spec.seen
    if seen is None or not seen.at or _moment(job["status"]["completionTime"]) >= _moment(seen.at):
        return ""
    made = outcome.get("result", {}).get("digests", {})
    gone = [name for name, digest in seen.digests.items() if made.get(name) != digest]
    return f"its result is no longer on the volume ({', '.join(gone)})" if gone else ""
