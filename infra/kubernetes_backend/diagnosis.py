"""What a Job and its pods mean, in words. Plain data in, plain data out.

Held to recordings of a real cluster by tests/kubernetes/test_diagnosis.py.
"""

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from infra.kubernetes_backend.fields import (
    Object,
    conditions,
    dict_of,
    dicts_of,
    text_of,
    whole_of,
    words_of,
)
from infra.kubernetes_backend.manifests_job import EXIT_INCOMPLETE, EXIT_LOST_NODE
from trainer.contract.json_text import parse_json

REFUSED_POD = re.compile(r'pods "[^"]*" ')
USED = re.compile(r", used: .*?(?=, limited: )", re.DOTALL)
PAUSE = re.compile(r"\bback-off \w+ ")
OF_NODES = re.compile(r"\d+/\d+ nodes are available.*", re.DOTALL)
NUMBER = re.compile(r"\d+ ?")
STARTING = frozenset({"ContainerCreating", "PodInitializing"})
EXIT_FAILED, EXIT_KILLED, EXIT_TERMINATED = 1, 137, 143  # 143: stopped after it has saved
LIGHT_STEPS = frozenset({"plan", "fetch", "tokenize", "deploy", "champion"})
# So many pods in a row that end in the same way so soon after their start: the next one will, too.
SAME_ENDS, SOON_SECONDS = 3, 20.0
INDEX_LABEL, FIRST = "batch.kubernetes.io/job-completion-index", "0"


def condition(obj: Object, kind: str) -> Object | None:
    """The object's condition of that type, if it is true."""
    for found in conditions(obj):
        if found["type"] == kind and found.get("status") == "True":
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
    statuses = dicts_of(dict_of(pod.get("status")).get("containerStatuses"))
    state = dict_of(statuses[0].get("state")) if statuses else {}
    return {name: dict_of(found) for name, found in state.items()}


def is_running(pod: Object) -> bool:
    return "running" in container_state(pod) and not is_lost(pod)


def is_lost(pod: Object) -> bool:
    """Whether the pod's node no longer answers, so that what is known of the pod is old.

    The node controller then makes its pods unready, and leaves its containers as the
    node last told them to be.
    """
    found = {c["type"]: c.get("status") for c in conditions(pod)}
    told = "running" in container_state(pod) and found.get("ContainersReady") == "True"
    return told and found.get("Ready") != "True"


def has_started(pod: Object) -> bool:
    return bool({"running", "terminated"} & set(container_state(pod)))


def has_ended(pod: Object) -> bool:
    ended = "terminated" in container_state(pod)
    return ended or pod["status"].get("phase") in ("Succeeded", "Failed")


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
    return text_of(dict_of(pod["metadata"].get("labels")).get(INDEX_LABEL)) or FIRST


def _culprits(pods: Iterable[Object]) -> list[Object]:
    """Those that did not end because another node did; all, where there is no such one."""
    pods = list(pods)
    own = [p for p in pods if _exit_code(p) != EXIT_LOST_NODE]
    return own or pods


def _terminated(pod: Object) -> Mapping[str, Any]:
    return container_state(pod).get("terminated", {})


def _outcome(pod: Object) -> dict[str, Any] | None:
    message = text_of(_terminated(pod).get("message"))
    try:
        outcome = parse_json(message) if message else None
    except (ValueError, RecursionError):
        return None
    return outcome if isinstance(outcome, dict) and "status" in outcome else None


def exit_code_of(pods: Iterable[Object]) -> int:
    """Exit code of the container that ended last with an error; 1 where none is known."""
    codes = [_exit_code(pod) for pod in _culprits(pods)]
    return next((code for code in reversed(codes) if code), EXIT_FAILED)


def _exit_code(pod: Object) -> int:
    return whole_of(_terminated(pod).get("exitCode"), 0)


# --- waiting ----------------------------------------------------------------------------


def why_waiting(job: Object, pods: list[Object], events: list[Object]) -> str:
    """What keeps the Job from running, in the cluster's own words; empty: nothing known.

    Args:
        pods: Those of the Job.
        events: Core Events about the Job and its pods.
    """
    if suspended := condition(job, "Suspended"):
        return words_of("suspended", suspended.get("message"))
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
    spec, done = dict_of(job.get("spec")), whole_of(dict_of(job.get("status")).get("succeeded"), 0)
    completions = whole_of(spec.get("completions"), 1)
    return max(1, min(whole_of(spec.get("parallelism"), 1), completions - done))


def have_all_run(job: Object, pods: Iterable[Object]) -> bool:
    """Whether each pod that the Job wants has started at some time: on each node one."""
    return len({index_of(pod) for pod in pods if has_started(pod)}) >= pods_wanted(job)


def why_pod_waits(pod: Object, events: list[Object]) -> str:
    """What keeps one pod from running; empty: it has started, or nothing is known."""
    if is_lost(pod):
        return (
            f"node {pod['spec'].get('nodeName')} does not answer; another pod takes the place of "
            f"{pod['metadata']['name']} once the node is back, or removed from the cluster"
        )
    if has_started(pod):
        return ""
    for found in conditions(pod):
        if found["type"] == "PodScheduled" and found.get("status") == "False":
            return words_of(found.get("reason"), found.get("message"))
    waiting = container_state(pod).get("waiting", {})
    if waiting.get("reason") and waiting["reason"] not in STARTING:
        return words_of(waiting["reason"], waiting.get("message"))
    return _newest_warning(events, pod["metadata"]["uid"])


def _newest_warning(events: list[Object], uid: str) -> str:
    about = [e for e in events if dict_of(e.get("involvedObject")).get("uid") == uid]
    # A pod that was made since makes the refusals before it history.
    told = [e for e in about if e.get("type") == "Warning" or e.get("reason") == "SuccessfulCreate"]
    newest = max(told, key=_moment, default={})
    if newest.get("type") != "Warning":
        return ""
    return words_of(newest.get("reason"), newest.get("message"))


def _moment(event: Object) -> tuple[str, int]:
    """When it happened last, and its version: times are whole seconds.

    The scheduler's events have `eventTime` alone.
    """
    version = text_of(dict_of(event.get("metadata")).get("resourceVersion"))
    when = text_of(event.get("lastTimestamp")) or text_of(event.get("eventTime"))
    return when, int(version) if version.isdecimal() else 0


def without_names(reason: str) -> str:
    """The reason without what differs at each try.

    That is the refused pod's name, a quota's use, the pause before a container starts again, and
    how many nodes there are, in which others come and go.
    """
    reason = PAUSE.sub("back-off ", USED.sub("", REFUSED_POD.sub("pods ", reason)))
    return OF_NODES.sub(lambda found: NUMBER.sub("", found[0]), reason)


# --- failures that another try does not mend -------------------------------------------


NEVER_BEGAN = ("StartError", "ContainerCannotRun")


def why_hopeless(pods: Iterable[Object]) -> str:
    """How the newest pods ended, where the next one would end like them; empty: it may not.

    Args:
        pods: Oldest first. Those that were evicted, killed or stopped say nothing.
    """
    ended = [pod for pod in pods if has_ended(pod) and not condition(pod, "DisruptionTarget")]
    for index in sorted({index_of(pod) for pod in ended}):
        newest = [pod for pod in ended if index_of(pod) == index][-SAME_ENDS:]
        manners = {_manner(pod) for pod in newest}
        if len(newest) == SAME_ENDS and len(manners) == 1 and None not in manners:
            soon = f"{SAME_ENDS} pods in a row ended in the same way within {SOON_SECONDS:g} s"
            return f"{soon} ({why_ended(newest[-1])})"
    return ""


def _manner(pod: Object) -> tuple[Any, ...] | None:
    """How a pod ended soon after its start by itself; None: otherwise."""
    terminated = _terminated(pod)
    code, reason = terminated.get("exitCode", 0), terminated.get("reason")
    stopped = code in (EXIT_TERMINATED, EXIT_LOST_NODE)
    if not code or stopped or (code == EXIT_KILLED and reason != "OOMKilled"):
        return None
    try:
        began, end = (
            datetime.fromisoformat(terminated[name]) for name in ("startedAt", "finishedAt")
        )
    except (KeyError, TypeError, ValueError):
        return None
    # What could not be started began in 1970 for a kubelet.
    if reason not in NEVER_BEGAN and (end - began).total_seconds() > SOON_SECONDS:
        return None
    return code, reason, (_outcome(pod) or {}).get("message", "")


def with_image(outcome: dict[str, Any] | None, code: int, why: str, image: str) -> str:
    """The reason of a failure that another try does not mend, with the image; else empty."""
    if code != EXIT_INCOMPLETE and not why:
        return ""
    said = (outcome or {}).get("message") or f"exit code {code}"
    return f"{said}\nImage: {image}. It is not tried again" + (f": {why}." if why else ".")


# --- failure ----------------------------------------------------------------------------


def why_failed(job: Object, pods: list[Object]) -> str:
    """Why the Job has failed: what ended its last pod, and what the Job made of it."""
    failed = condition(job, "Failed") or {}
    ended = [why_ended(pod) for pod in _culprits(pods) if has_ended(pod)]
    last = next((words for words in reversed(ended) if words), "")
    reason = failed.get("reason") or "failed"
    if reason == "DeadlineExceeded":
        seconds = dict_of(job.get("spec")).get("activeDeadlineSeconds")
        return f"it took longer than its deadline of {seconds} seconds"
    if reason == "BackoffLimitExceeded":
        tries = whole_of(dict_of(job.get("status")).get("failed"), 1)
        times = "" if tries == 1 else f" (the last of {tries} tries)"
        last = f"{last}{times}" if last else ""
    return last or "; ".join([words_of(reason, failed.get("message")), *_vanished(pods)])


def crashes(pods: list[Object]) -> str:
    """What ended the pods, where each ended by itself with an error, and none runs; else empty."""
    own = [pod for pod in pods if has_ended(pod) and not condition(pod, "DisruptionTarget")]
    codes = [_exit_code(pod) for pod in own]
    if not own or len(own) < len(pods) or not all(codes) or EXIT_TERMINATED in codes:
        return ""
    times = "a pod failed" if len(own) == 1 else f"{len(own)} pods failed, one after the other"
    return f"{times} ({why_ended(own[-1])})"


def _vanished(pods: Iterable[Object]) -> list[str]:
    """Of pods that a Job that has ended did not wait for: they went away between two looks."""
    return [
        f"pod {pod['metadata']['name']} went away: {last_seen(pod)}"
        for pod in pods
        if not has_ended(pod)
    ]


def last_seen(pod: Object) -> str:
    """The last state of a pod that went away, in words: why it ended, where that was seen."""
    if why := why_ended(pod):
        return f"{why}; it is gone"
    node = text_of(dict_of(pod.get("spec")).get("nodeName"))
    state = next(iter(container_state(pod)), "") or text_of(pod["status"].get("phase")).lower()
    deleted = ", being deleted" if is_being_deleted(pod) else ""
    return f"it is gone; last seen {state or 'without a state'}{deleted}{node and f' on {node}'}"


def why_ended(pod: Object) -> str:
    """What ended the pod, if not itself with exit code 0."""
    terminated = _terminated(pod)
    containers = dicts_of(dict_of(pod.get("spec")).get("containers")) or [{}]
    if disruption := condition(pod, "DisruptionTarget"):
        return words_of(f"disrupted ({disruption.get('reason')})", disruption.get("message"))
    if pod["status"].get("reason"):  # Evicted by the kubelet, NodeLost, ...
        return words_of(pod["status"]["reason"], pod["status"].get("message"))
    if terminated.get("reason") == "OOMKilled":
        limits = dict_of(dict_of(containers[0].get("resources")).get("limits"))
        limit = limits.get("memory", "none")
        labels = dict_of(dict_of(pod.get("metadata")).get("labels"))
        light = labels.get("app.kubernetes.io/component") in LIGHT_STEPS
        raised = "cluster.light_memory_gib" if light else "trainer_ram"
        return f"out of memory: killed at its limit of {limit} (raise {raised})"
    code = _exit_code(pod)
    if code == EXIT_LOST_NODE:
        return "it is well, but another node of its group ended"
    if code == EXIT_KILLED:
        return "killed by SIGKILL: by its node, or because it did not stop within its grace"
    if code and terminated.get("reason") not in ("Error", "Completed", None):
        return words_of(terminated["reason"], terminated.get("message"))
    return f"exit code {code}" if code else ""
