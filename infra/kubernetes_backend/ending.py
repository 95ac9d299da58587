"""How a Job ended, as a step's end: from its pods, else from the volume, else in words."""

import contextlib
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from infra import manifests
from infra.backend import StepEnd, StepSpec
from infra.kubernetes_backend import diagnosis
from infra.kubernetes_backend.connection import Connection
from infra.kubernetes_backend.contact import Object
from infra.kubernetes_backend.watching import Seen

EXIT_TERMINATED = 143  # of a step that was stopped
EXIT_CODES = {"refused": manifests.EXIT_REFUSED, "interrupted": EXIT_TERMINATED}
# What a step without a GPU found (which files, which tokens) is not asked for again that soon.
FRESH = timedelta(hours=1)
LOOK_AT_WHAT_SERVES = ("deploy", "champion")


async def end_of(
    connection: Connection, spec: StepSpec, seen: Seen, volumes: Path, log: str
) -> StepEnd:
    """What is told of a Job that has ended, or went away."""
    outcome = diagnosis.outcome_of(seen.pods, done=diagnosis.is_complete(seen.job))
    if seen.gone:
        why = f"stopped: Job {manifests.name_of(spec)} was deleted"
        return StepEnd(exit_code=EXIT_TERMINATED, outcome=outcome, reason=why, log=log)
    if diagnosis.is_complete(seen.job):
        outcome = outcome or await done_outcome(connection, spec, seen.job, volumes)
        lost = "" if outcome else "it is done, but its outcome is lost; run the same again"
        return StepEnd(exit_code=0, outcome=outcome, reason=lost, log=log)
    code, why = diagnosis.exit_code_of(seen.pods), diagnosis.why_failed(seen.job, seen.pods)
    if not any(diagnosis.has_ended(pod) for pod in seen.pods):
        outcome = _on_volume(spec, volumes, lambda found: _is_of(found, seen.job))
        code = EXIT_CODES.get((outcome or {}).get("status", ""), code)
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
    with contextlib.suppress(OSError, json.JSONDecodeError):
        outcome = json.loads(path.read_text(encoding="utf-8")) if spec.run_name else {}
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
    if await done_outcome(connection, spec, job, volumes) is None:
        return "the outcome of the one before is lost"
    return ""


def _why_stale(spec: StepSpec, job: Object) -> str:
    """Why the step has to look again whether what it made still stands; empty: it has not.

    A run of the flow that ended has settled its Jobs. One that was killed has not: what it
    got done is taken by the next, so that nobody asks for a GPU only to hear "reused". A
    step with a GPU works on what its key names by content; one without looks at files that
    people change: what it saw stands for its own run of the flow, else only for a while.
    """
    annotations = job["metadata"]["annotations"]
    settled = annotations.get(manifests.SETTLED_ANNOTATION, "")
    same = annotations.get(manifests.ATTEMPT_ANNOTATION, "") == spec.attempt
    if settled == manifests.SETTLED_DONE:
        return "" if same else "the one before was done for another run of the flow"
    if spec.step in LOOK_AT_WHAT_SERVES and not same:
        return "what serves may have changed since"
    if spec.resources.gpus:
        return ""
    if settled == manifests.SETTLED_FAILED:
        return "the run of the flow that it was done for has failed since"
    if not same and datetime.now(UTC) - _moment(job["status"]["completionTime"]) > FRESH:
        return "the one before was done long ago, for another run of the flow"
    return ""
