"""The Job controller: makes Pods, counts how they end, and writes the Job's status.

Order and words of its status updates are those of the recordings. Parts of a Job that
the project does not use (TTL, success policy, elastic Jobs) are left out.
"""

import asyncio

from tests.kubernetes_double.deletion import FOREGROUND, collect, delete_pod
from tests.kubernetes_double.events import Events
from tests.kubernetes_double.job_rules import (
    TRACKING,
    condition,
    done_indexes,
    failure_policy,
    has,
    has_target,
    index_of,
    is_ready,
    pod_of,
)
from tests.kubernetes_double.namespace_rules import NamespaceRules
from tests.kubernetes_double.store import Object, Store, generated_suffix, now

BACKOFF_LIMIT = ("BackoffLimitExceeded", "Job has reached the specified backoff limit")
DEADLINE = ("DeadlineExceeded", "Job was active longer than specified deadline")
BATCH_SECONDS = 0.05  # changes of Pods are looked at together (real: 1 second)
REACHED = ("CompletionsReached", "Reached expected number of succeeded pods")


class JobController:
    """Brings each Job nearer to its end whenever something changes.

    Args:
        backoff_seconds: Before the first Pod that replaces a failed one; then doubled (real: 10).
            A tenth of it is the time to the second try of a Pod that was refused; then doubled.
        rules: Of the namespace.
    """

    def __init__(
        self, store: Store, events: Events, backoff_seconds: float, rules: NamespaceRules
    ) -> None:
        self._store = store
        self._events = events
        self._backoff_seconds = backoff_seconds
        self._not_before: dict[str, float] = {}
        self._dirty: set[tuple[str, str]] = set()
        self._watched_deadlines: set[str] = set()
        self.rules = rules
        self._refusals: dict[str, int] = {}  # by the Job's uid: how often its Pods were refused
        self.most_pods = 1000  # how many a Job may have at a time, else the quota is exceeded
        store.listen(self._on_change)

    def _on_change(self, change: str, kind: str, obj: Object) -> None:
        metadata = obj["metadata"]
        if kind == "jobs" and change != "DELETED":
            self._soon(metadata["namespace"], metadata["name"])
        if kind == "pods":
            for owner in metadata.get("ownerReferences", []):
                self._soon(metadata["namespace"], owner["name"], delay=BATCH_SECONDS)
                self._release_orphan(obj, owner["name"])
        if kind == "jobs" and change == "DELETED":
            for _, pod in self._store.owned(obj):
                self._release_orphan(pod, metadata["name"])

    def _soon(self, namespace: str, name: str, delay: float = 0.0) -> None:
        if delay:
            asyncio.get_running_loop().call_later(delay, self._soon, namespace, name)
        elif (namespace, name) not in self._dirty:
            self._dirty.add((namespace, name))
            asyncio.get_running_loop().call_soon(self._run, namespace, name)

    def _run(self, namespace: str, name: str) -> None:
        self._dirty.discard((namespace, name))
        job = self._store.get("jobs", namespace, name)
        if job is not None:
            self._reconcile(job)

    def _release_orphan(self, pod: Object, owner: str) -> None:
        job = self._store.get("jobs", pod["metadata"]["namespace"], owner)
        uids = [r["uid"] for r in pod["metadata"].get("ownerReferences", [])]
        if job is None or job["metadata"]["uid"] not in uids:
            self._release(pod)

    def _release(self, pod: Object) -> None:
        current = self._store.get("pods", pod["metadata"]["namespace"], pod["metadata"]["name"])
        if current and TRACKING in current["metadata"].get("finalizers", []):
            del current["metadata"]["finalizers"]
            self._store.update("pods", current)

    def _reconcile(self, job: Object) -> None:
        pods = [pod for kind, pod in self._store.owned(job) if kind == "pods"]
        status = job.setdefault("status", {})
        if FOREGROUND in job["metadata"].get("finalizers", []):
            for pod in pods:
                self._release(pod)
            collect(self._store, "jobs", job)
            return
        if has(status, "Complete") or has(status, "Failed"):
            for pod in pods:
                self._release(pod)
            return
        if self._suspend(job, pods):
            return
        tracked = [pod for pod in pods if TRACKING in pod["metadata"].get("finalizers", [])]
        ended = [pod for pod in tracked if pod["status"]["phase"] in ("Succeeded", "Failed")]
        if ended and not has(status, "FailureTarget"):
            self._count(job, ended, pods)
        elif has_target(status):
            self._finish(job, pods)
        else:
            self._keep_running(job, [pod for pod in pods if pod not in ended])

    def _suspend(self, job: Object, pods: list[Object]) -> bool:
        status, suspended = job["status"], has(job["status"], "Suspended")
        if not job["spec"].get("suspend"):
            if suspended:
                status["conditions"] = []
                self._store.update("jobs", job)
            return False
        for pod in pods:
            if "deletionTimestamp" not in pod["metadata"]:
                delete_pod(self._store, pod, None)
        if not suspended:
            status["conditions"] = [condition("Suspended", ("JobSuspended", "Job suspended"))]
            self._store.update("jobs", job)
        return True

    def _keep_running(self, job: Object, pods: list[Object]) -> None:
        """Make the Pods that are missing, watch the deadline, and say what is there."""
        spec, status, metadata = job["spec"], job["status"], job["metadata"]
        if status.get("failed", 0) > spec.get("backoffLimit", 6) and not has_target(status):
            alive = [p for p in pods if p["status"]["phase"] in ("Pending", "Running")]
            self._fail(job, BACKOFF_LIMIT, alive)  # the limit was lowered since
            return
        loop = asyncio.get_running_loop()
        running = [pod for pod in pods if pod["status"]["phase"] in ("Pending", "Running")]
        place = (metadata["namespace"], metadata["name"])
        deadline = spec.get("activeDeadlineSeconds")
        if deadline and metadata["uid"] not in self._watched_deadlines:
            self._watched_deadlines.add(metadata["uid"])
            loop.call_later(deadline, self._exceed, *place, metadata["uid"])
        wait = self._not_before.get(metadata["uid"], 0.0) - loop.time()
        wanted = spec.get("parallelism", 1) - len(running) - status.get("succeeded", 0)
        if wanted > 0 and wait > 0:
            self._soon(*place, delay=wait)
        elif wanted > 0:
            running += self._make_pods(job, wanted, running)
        status |= {
            "active": len(running),
            "ready": sum(is_ready(pod) for pod in running),
            "startTime": status.get("startTime") or now(),
            "terminating": 0,
            "uncountedTerminatedPods": {},
        }
        if not running:
            del status["active"]
        self._store.update("jobs", job)

    def _make_pods(self, job: Object, wanted: int, running: list[Object]) -> list[Object]:
        if refused := self.rules.against_pod(job["spec"]["template"]):
            self._refused(job, refused)
            return []
        made: list[Object] = []
        for _ in range(wanted):
            if len(running + made) >= self.most_pods:
                self._refused(job, "exceeded quota: pods")
                break
            index = None
            if job["spec"].get("completionMode") == "Indexed":
                taken = {index_of(pod) for pod in running + made} | done_indexes(job["status"])
                index = min(set(range(job["spec"]["completions"])) - taken)
            pod = self._store.create("pods", job["metadata"]["namespace"], pod_of(job, index))
            words = f"Created pod: {pod['metadata']['name']}"
            self._events.tell(job, "Normal", "SuccessfulCreate", words, "job-controller")
            made.append(pod)
        return made

    def _refused(self, job: Object, why: str) -> None:
        """Tell of a Pod that was not let in, by the name it would have had, and try again."""
        metadata = job["metadata"]
        name = f"{metadata['name']}-{generated_suffix()}"
        words = f'Error creating: pods "{name}" is forbidden: {why}'
        self._events.tell(job, "Warning", "FailedCreate", words, "job-controller")
        tries = self._refusals.get(metadata["uid"], 0)
        self._refusals[metadata["uid"]] = tries + 1
        wait = self._backoff_seconds / 10 * 2**tries
        loop = asyncio.get_running_loop()
        self._not_before[metadata["uid"]] = loop.time() + wait
        self._soon(metadata["namespace"], metadata["name"], delay=wait)

    def _exceed(self, namespace: str, name: str, uid: str) -> None:
        job = self._store.get("jobs", namespace, name)
        if job is None or job["metadata"]["uid"] != uid or has_target(job["status"]):
            return
        pods = [pod for kind, pod in self._store.owned(job) if kind == "pods"]
        self._fail(
            job, DEADLINE, [p for p in pods if p["status"]["phase"] in ("Pending", "Running")]
        )

    def _count(self, job: Object, ended: list[Object], pods: list[Object]) -> None:
        """Take the Pods that ended into the status, and decide what that means for the Job."""
        spec, status, metadata = job["spec"], job["status"], job["metadata"]
        succeeded = [pod for pod in ended if pod["status"]["phase"] == "Succeeded"]
        failed, verdict = [], None
        for pod in (p for p in ended if p not in succeeded):
            action, why = failure_policy(job, pod)
            verdict = verdict or why
            if action != "Ignore":
                failed.append(pod)
        running = [p for p in pods if p["status"]["phase"] in ("Pending", "Running")]
        status["uncountedTerminatedPods"] = {
            name: [pod["metadata"]["uid"] for pod in found]
            for name, found in (("succeeded", succeeded), ("failed", failed))
            if found
        }
        status["active"], status["ready"] = len(running), sum(is_ready(pod) for pod in running)
        if not running:
            del status["active"]
        total = status.get("failed", 0) + len(failed)
        if verdict is None and failed and total > spec.get("backoffLimit", 6):
            verdict = BACKOFF_LIMIT
        done = status.get("succeeded", 0) + len(succeeded)
        if spec.get("completionMode") == "Indexed" and succeeded:
            indexes = sorted(done_indexes(status) | {index_of(pod) for pod in succeeded})
            status |= {"completedIndexes": ",".join(map(str, indexes)), "succeeded": done}
        if verdict:
            self._fail(job, verdict, running)
        elif done >= spec.get("completions", 1):
            status["conditions"] = [condition("SuccessCriteriaMet", REACHED)]
        job = self._store.update("jobs", job)
        for pod in ended:
            self._release(pod)
        if failed and not verdict:
            loop, rounds = asyncio.get_running_loop(), min(total - 1, 6)
            self._not_before[metadata["uid"]] = loop.time() + self._backoff_seconds * 2**rounds
        self._settle(job, done, total)

    def _settle(self, job: Object, done: int, failed: int) -> None:
        status = job["status"]
        status["uncountedTerminatedPods"] = {}
        if done:
            status["succeeded"] = done
        if failed:
            status["failed"] = failed
        if has(status, "SuccessCriteriaMet"):
            status["conditions"].append(condition("Complete", REACHED))
            status["completionTime"] = now()
            self._events.tell(job, "Normal", "Completed", "Job completed", "job-controller")
        still = [p for k, p in self._store.owned(job) if k == "pods"]
        job = self._store.update("jobs", job)
        if has(status, "FailureTarget"):
            self._finish(job, still)

    def _fail(self, job: Object, why: tuple[str, str], running: list[Object]) -> None:
        """Set the condition FailureTarget and end what runs; `_finish` does the rest."""
        status = job["status"]
        for pod in running:
            if "deletionTimestamp" not in pod["metadata"]:
                delete_pod(self._store, pod, None)
                words = f"Deleted pod: {pod['metadata']['name']}"
                self._events.tell(job, "Normal", "SuccessfulDelete", words, "job-controller")
        status["conditions"] = [condition("FailureTarget", why)]
        status |= {"ready": 0, "terminating": len(running)}
        status.pop("active", None)
        if why == DEADLINE:
            status["failed"] = status.get("failed", 0) + len(running)
        self._store.update("jobs", job)

    def _finish(self, job: Object, pods: list[Object]) -> None:
        """Once no Pod runs any more a Job that is to fail has failed."""
        for pod in pods:
            self._release(pod)
        running = [p for p in pods if p["status"]["phase"] in ("Pending", "Running")]
        status = job["status"]
        if running or not has(status, "FailureTarget"):
            return
        target = status["conditions"][0]
        status["conditions"].append({**target, "type": "Failed"})
        status |= {"ready": 0, "terminating": 0}
        self._store.update("jobs", job)
        self._events.tell(job, "Warning", target["reason"], target["message"], "job-controller")
