"""What happened to each Job of a cluster, from the history of its objects."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from tests.kubernetes_double.store import Object


@dataclass
class JobSeen:
    """One Job from its creation on; one that is made anew under its name is another."""

    name: str
    pod_spec: Object
    began: str
    uid: str
    ended: str = ""
    said: str = ""  # what its step said at the end, else how the Job ended
    pods: set[str] = field(default_factory=set)

    @property
    def num_pods(self) -> int:
        return len(self.pods)

    @property
    def seconds(self) -> float:
        """From its creation to its end, by the cluster's clock of whole seconds."""
        end = datetime.fromisoformat(self.ended or self.began)
        return (end - datetime.fromisoformat(self.began)).total_seconds()


def jobs_seen(history: Iterable[tuple[int, str, str, Object]]) -> list[JobSeen]:
    """Every Job that there was, oldest first."""
    jobs: dict[str, JobSeen] = {}
    for _, change, kind, obj in history:
        metadata = obj["metadata"]
        if kind == "jobs" and change == "ADDED":
            spec = obj["spec"]["template"]["spec"]
            began = metadata["creationTimestamp"]
            jobs[metadata["uid"]] = JobSeen(metadata["name"], spec, began, metadata["uid"])
        elif kind == "jobs":
            _note_end(jobs[metadata["uid"]], obj)
        owners = metadata.get("ownerReferences", []) if kind == "pods" else []
        for owner in (o for o in owners if o["uid"] in jobs):  # servers have other owners
            jobs[owner["uid"]].pods.add(metadata["name"])
            jobs[owner["uid"]].said = _said(obj) or jobs[owner["uid"]].said
    return list(jobs.values())


def _note_end(job: JobSeen, obj: Object) -> None:
    for condition in obj.get("status", {}).get("conditions", []):
        if condition["type"] in ("Complete", "Failed") and not job.ended:
            job.ended = condition["lastTransitionTime"]
            job.said = job.said or condition["message"]


def _said(pod: Object) -> str:
    """The first line of the outcome in the pod's termination message."""
    for status in pod["status"].get("containerStatuses", []):
        message: str = status["state"].get("terminated", {}).get("message", "")
        if message:
            outcome: dict[str, Any] = json.loads(message)
            return outcome["message"].partition("\n")[0]
    return ""
