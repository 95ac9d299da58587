"""What a Job and its pods mean, in words. Plain data in, plain data out.

Held to recordings of a real cluster by tests/kubernetes/test_diagnosis.py.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from infra.manifests import EXIT_LOST_NODE

Object = dict[str, Any]
STARTING = frozenset({"ContainerCreating", "PodInitializing"})
EXIT_FAILED, EXIT_KILLED = 1, 137
INDEX_LABEL, FIRST = "batch.kubernetes.io/job-completion-index", "0"


def condition(obj: Object, kind: str) -> Object | None:
    """The object's condition of that type, if it is true."""
    for found in obj.get("status", {}).get("conditions") or []:
        if found["type"] == kind and found["status"] == "True":
            return found
    return None


def is_complete(job: Object) -> bool:
    """Whether the Job has ended well. SuccessCriteriaMet alone is not yet the end."""
    return condition(job, "Complete") is not None


def is_failed(job: Object) -> bool:
    return condition(job, "Failed") is not None


def is_being_deleted(obj: Object) -> bool:
    return "deletionTimestamp" in obj["metadata"]


def container_state(pod: Object) -> Mapping[str, Any]:
    """`{"running": ...}`, `{"waiting": ...}`, `{"terminated": ...}` or nothing yet."""
    statuses = pod["status"].get("containerStatuses") or []
    return statuses[0]["state"] if statuses else {}


def is_running(pod: Object) -> bool:
    return "running" in container_state(pod) and not is_lost(pod)


def is_lost(pod: Object) -> bool:
    """Whether the pod's node no longer answers, so that what is known of the pod is old.

    Whoever looks after nodes then makes its pods unready, and leaves its containers as the
    node last told them to be.
    """
    found = {c["type"]: c["status"] for c in pod["status"].get("conditions") or []}
    told = "running" in container_state(pod) and found.get("ContainersReady") == "True"
    return told and found.get("Ready") != "True"


def has_started(pod: Object) -> bool:
    return bool({"running", "terminated"} & set(container_state(pod)))


def has_ended(pod: Object) -> bool:
    ended = "terminated" in container_state(pod)
    return ended or pod["status"]["phase"] in ("Succeeded", "Failed")


def outcome_of(pods: Iterable[Object], *, done: bool) -> dict[str, Any] | None:
    """What the step left in a termination message.

    Args:
        pods: Oldest first.
        done: Of the pod that did the work; else of the one that ended last, if it left any:
            an older one's does not say why the last one failed.
    """
    ended = [pod for pod in pods if has_ended(pod)]
    if not done:
        culprits = _culprits(ended)
        return _outcome(culprits[-1]) if culprits else None
    outcomes = [_outcome(pod) for pod in reversed(ended) if index_of(pod) == FIRST]
    return next((found for found in outcomes if found and found["status"] == "done"), None)


def index_of(pod: Object) -> str:
    """Which node of several the pod is; the only one is the first."""
    return pod["metadata"].get("labels", {}).get(INDEX_LABEL, FIRST)


def _culprits(pods: Iterable[Object]) -> list[Object]:
    """Those that did not end because another node did; all, where there is no such one."""
    pods = list(pods)
    own = [p for p in pods if _terminated(p).get("exitCode") != EXIT_LOST_NODE]
    return own or pods


def _terminated(pod: Object) -> Mapping[str, Any]:
    return container_state(pod).get("terminated", {})


def _outcome(pod: Object) -> dict[str, Any] | None:
    message = _terminated(pod).get("message", "")
    try:
        outcome = json.loads(message) if message else None
    except ValueError:
        return None
    return outcome if isinstance(outcome, dict) and "status" in outcome else None


def exit_code_of(pods: Iterable[Object]) -> int:
    """Exit code of the container that ended last with an error; 1 where none is known."""
    codes = [_terminated(pod).get("exitCode", 0) for pod in _culprits(pods)]
    return next((code for code in reversed(codes) if code), EXIT_FAILED)


# --- waiting ----------------------------------------------------------------------------


def why_waiting(job: Object, pods: list[Object], events: list[Object]) -> str:
    """What keeps the Job from running, in the cluster's own words; empty: nothing known.

    Args:
        pods: Those of the Job.
        events: Core Events about the Job and its pods.
    """
    if suspended := condition(job, "Suspended"):
        return _words("suspended", suspended.get("message", ""))
    if job.get("spec", {}).get("suspend"):
        return "suspended: its queue has not admitted it yet"
    alive = [pod for pod in pods if not has_ended(pod)]
    reasons = (why_pod_waits(pod, events) for pod in alive)
    if why := next((reason for reason in reasons if reason), ""):
        return why
    missing = len(alive) < pods_wanted(job)
    return _newest_warning(events, job["metadata"]["uid"]) if missing else ""


def pods_wanted(job: Object) -> int:
    """How many pods the Job is to have at this moment: one, or one for each node not done."""
    spec, done = job.get("spec", {}), job.get("status", {}).get("succeeded", 0)
    return max(1, min(spec.get("parallelism", 1), spec.get("completions", 1) - done))


def have_all_run(job: Object, pods: Iterable[Object]) -> bool:
    """Whether each pod that the Job wants has started at some time: on each node one."""
    return len({index_of(pod) for pod in pods if has_started(pod)}) >= pods_wanted(job)


def why_pod_waits(pod: Object, events: list[Object]) -> str:
    """What keeps one pod from running; empty: it has started, or nothing is known."""
    if is_lost(pod):
        return (
            f"node {pod['spec']['nodeName']} does not answer; another pod takes the place of "
            f"{pod['metadata']['name']} once the node is back, or removed from the cluster"
        )
    if has_started(pod):
        return ""
    for found in pod["status"].get("conditions") or []:
        if found["type"] == "PodScheduled" and found["status"] == "False":
            return _words(found.get("reason", ""), found.get("message", ""))
    waiting = container_state(pod).get("waiting", {})
    if waiting and waiting["reason"] not in STARTING:
        return _words(waiting["reason"], waiting.get("message", ""))
    return _newest_warning(events, pod["metadata"]["uid"])


def _newest_warning(events: list[Object], uid: str) -> str:
    about = [e for e in events if e["involvedObject"]["uid"] == uid and e["type"] == "Warning"]
    if not about:
        return ""
    newest = max(about, key=lambda event: event.get("lastTimestamp") or "")
    return _words(newest["reason"], newest["message"])


# --- failure ----------------------------------------------------------------------------


def why_failed(job: Object, pods: list[Object]) -> str:
    """Why the Job has failed: what ended its last pod, and what the Job made of it."""
    failed = condition(job, "Failed") or {}
    ended = [why_ended(pod) for pod in _culprits(pods) if has_ended(pod)]
    last = next((words for words in reversed(ended) if words), "")
    reason = failed.get("reason") or "failed"
    if reason == "DeadlineExceeded":
        seconds = job["spec"].get("activeDeadlineSeconds")
        return f"it took longer than its deadline of {seconds} seconds"
    if reason == "BackoffLimitExceeded":
        tries = job["status"].get("failed", 1)
        times = "" if tries == 1 else f" (the last of {tries} tries)"
        return f"{last}{times}" if last else _words(reason, failed.get("message", ""))
    return last or _words(reason, failed.get("message", ""))


def why_ended(pod: Object) -> str:
    """What ended the pod, if not itself with exit code 0."""
    terminated = _terminated(pod)
    container = pod["spec"]["containers"][0]
    if disruption := condition(pod, "DisruptionTarget"):
        return _words(f"disrupted ({disruption.get('reason')})", disruption.get("message", ""))
    if pod["status"].get("reason"):  # Evicted by the kubelet, NodeLost, ...
        return _words(pod["status"]["reason"], pod["status"].get("message", ""))
    if terminated.get("reason") == "OOMKilled":
        limit = container.get("resources", {}).get("limits", {}).get("memory", "none")
        return f"out of memory: killed at its limit of {limit} (raise trainer_ram)"
    code = terminated.get("exitCode", 0)
    if code == EXIT_LOST_NODE:
        return "it is well, but another node of its group ended"
    if code == EXIT_KILLED:
        return "killed by SIGKILL: by its node, or because it did not stop within its grace"
    if code and terminated.get("reason") not in ("Error", "Completed", None):
        return _words(terminated["reason"], terminated.get("message", ""))
    return f"exit code {code}" if code else ""


def _words(reason: str, message: str) -> str:
    return f"{reason}: {message}" if message and message != reason else reason
