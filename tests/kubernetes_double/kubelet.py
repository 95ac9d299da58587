"""The scheduler and the node: Pods become real processes, and their ends a status."""

import asyncio
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.images.image import NAMES, Image, shipped_images, tag_of
from tests.kubernetes_double import pod_status
from tests.kubernetes_double.container import TRAINER, Container
from tests.kubernetes_double.deletion import delete_pod, remove_when_free
from tests.kubernetes_double.events import Events
from tests.kubernetes_double.pod_secrets import missing_secret, variables_of
from tests.kubernetes_double.store import Object, Store

CANNOT_HELP = (
    "no new claims to deallocate, preemption: 0/1 nodes are available: "
    "1 Preemption is not helpful for scheduling."
)
HOOK_SECONDS = 1.0  # what a preStop hook takes, whatever its container says


@dataclass
class Node:
    """The one machine of the cluster; tests change it to make things fail."""

    gpus: int = 8
    labels: dict[str, str] = field(
        default_factory=lambda: {
            "gpu.nvidia.com/class": "A40",
            "topology.kubernetes.io/region": "US-EAST-01",
        }
    )
    # By name; None: those that `make images` builds. One that is None is this machine as it is.
    images: Mapping[str, Image | None] | None = None
    missing_images: set[str] = field(default_factory=set)
    pull_seconds: float = 0.0  # what an image takes to come
    minute_seconds: float = 60.0  # what a minute of a service that nobody asks takes
    mount_failure: str = ""  # the words with which no volume can be mounted
    # Of stand-ins: this command in place of `python -m trainer`, on this machine as it is.
    entrypoint: list[str] | None = None
    environment: dict[str, str] = field(default_factory=dict)
    hosts: dict[str, str] = field(default_factory=dict)  # addresses of the cluster's names
    kubeconfigs: dict[str, Path] = field(default_factory=dict)  # of service accounts

    def lacks(self, image: str) -> bool:
        """Whether no registry has an image of that name."""
        known = map(tag_of, NAMES) if self.images is None else self.images
        return image in self.missing_images or image not in set(known)


class _DeletedError(Exception):
    """The Pod is to go before its container was started."""


class Kubelet:
    """Runs every Pod of the store on one node."""

    def __init__(
        self, store: Store, events: Events, node: Node, folder: Path, volumes: Mapping[str, Path]
    ) -> None:
        self._store, self._events, self._node = store, events, node
        self._folder, self._volumes = folder, volumes
        self._tasks: set[asyncio.Task[None]] = set()
        self.containers: dict[str, Container] = {}  # by the Pod's uid; kept for its log
        self.failures: list[BaseException] = []
        store.listen(self._on_change)

    def _on_change(self, change: str, kind: str, obj: Object) -> None:
        if kind == "pods" and change == "ADDED":
            task = asyncio.get_running_loop().create_task(self._live(obj))
            self._tasks.add(task)
            task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.failures.append(task.exception())  # type: ignore[arg-type]

    async def stop(self) -> None:
        """Kill every container and wait until it is gone."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for container in self.containers.values():
            await container.end()

    def evict(self, pod: Object) -> None:
        """As the eviction API does: mark the Pod, then delete it with its grace."""
        pod["status"].setdefault("conditions", []).append(
            pod_status.condition(
                "DisruptionTarget", True, "EvictionByEvictionAPI", "Eviction API: evicting"
            )
        )
        delete_pod(self._store, self._store.update("pods", pod), None)

    def kill_for_memory(self, pod: Object) -> None:
        container = self.containers[pod["metadata"]["uid"]]
        container.killed_for = "OOMKilled"
        container.kill()

    async def _live(self, pod: Object) -> None:
        try:
            pod = await self._schedule(pod)
            pod = await self._prepare(pod)
        except _DeletedError:
            await self._remove(pod, was_running=False)
            return
        container = self.containers[pod["metadata"]["uid"]]
        words = "Container started"
        self._events.tell(pod, "Normal", "Started", words, "kubelet")
        code = await self._run(pod, container)
        current = self._current(pod)
        if current is None:
            return
        reason = container.killed_for or ("Completed" if code == 0 else "Error")
        message = container.termination_message
        gone = "deletionTimestamp" in current["metadata"]
        phase = "Succeeded" if code == 0 and not gone else "Failed"
        phase = "Succeeded" if code == 0 else phase
        if not gone:
            # The kubelet tells of the container first, and of the phase with its next look.
            status = pod_status.terminated(current, "Running", code, reason, message, network=True)
            self._set_status(current, status)
            await asyncio.sleep(0.02)
        current = self._current(pod)
        if current is None:
            return
        status = pod_status.terminated(current, phase, code, reason, message, network=False)
        self._set_status(current, status)
        await self._remove(current, was_running=True)

    async def _schedule(self, pod: Object) -> Object:
        if reason := self._unschedulable(pod):
            self._set_status(pod, pod_status.unschedulable(reason))
            self._events.tell(pod, "Warning", "FailedScheduling", reason, "default-scheduler")
            await self._hold(pod, lambda: not self._unschedulable(pod))
        current = self._current(pod)
        if current is None:  # deleted before any node had it
            raise _DeletedError
        pod = current
        pod["spec"]["nodeName"] = pod_status.NODE
        pod = self._set_status(pod, pod_status.scheduled())
        place = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
        words = f"Successfully assigned {place} to {pod_status.NODE}"
        self._events.tell(pod, "Normal", "Scheduled", words, "default-scheduler")
        return pod

    async def _prepare(self, pod: Object) -> Object:
        """Mount, pull and start."""
        pod = self._set_status(pod, pod_status.waiting(pod, "ContainerCreating", network=False))
        if words := self._node.mount_failure:
            self._events.tell(pod, "Warning", "FailedMount", words, "kubelet")
            await self._hold(pod, lambda: not self._node.mount_failure)
        uid = pod["metadata"]["uid"]
        stand_in = self._stand_in_for(pod)
        container = Container(pod, self._folder / uid, self._volumes, stand_in, self._node.hosts)
        container.mount()
        await self._pull(pod)
        image = await self._image_of(pod) if stand_in is None else None
        if words := missing_secret(self._store, pod):
            self._set_status(pod, pod_status.waiting(pod, "CreateContainerConfigError", words))
            self._events.tell(pod, "Warning", "Failed", f"Error: {words}", "kubelet")
            await self._hold(pod, lambda: not missing_secret(self._store, pod))
        pod = self._set_status(pod, pod_status.waiting(pod, "ContainerCreating"))
        await container.start(self._environment(pod), image)
        self.containers[uid] = container
        self._events.tell(pod, "Normal", "Created", "Container created", "kubelet")
        current = self._current(pod) or pod
        return self._set_status(current, pod_status.running(current, f"containerd://{uid}"))

    def _environment(self, pod: Object) -> dict[str, str]:
        """Of Secrets, of the node, and the credentials of the Pod's account if it gets any."""
        spec = pod["spec"]
        environment = {**variables_of(self._store, pod), **self._node.environment}
        kubeconfig = self._node.kubeconfigs.get(spec.get("serviceAccountName", ""))
        if kubeconfig is None or spec.get("automountServiceAccountToken") is False:
            return environment
        return {**environment, "KUBECONFIG": str(kubeconfig)}

    def _stand_in_for(self, pod: Object) -> list[str] | None:
        """What its trainer is replaced by on this machine; None: it runs in its image."""
        image, images = pod["spec"]["containers"][0]["image"], self._node.images or {}
        if image in images and images[image] is None:
            return []
        return self._node.entrypoint if _is_trainer(pod) else None

    async def _image_of(self, pod: Object) -> Image | None:
        images = self._node.images
        if images is None:
            images = self._node.images = await asyncio.to_thread(shipped_images)
        return images[pod["spec"]["containers"][0]["image"]]

    async def _pull(self, pod: Object) -> None:
        container = pod["spec"]["containers"][0]
        image = container["image"]
        if self._node.lacks(image):
            await self._miss(pod, container, image)
        await asyncio.sleep(self._node.pull_seconds)
        words = f'Container image "{image}" already present on machine'
        words += " and can be accessed by the pod"
        self._events.tell(pod, "Normal", "Pulled", words, "kubelet")

    async def _miss(self, pod: Object, container: Object, image: str) -> None:
        """Say that the image is not there until it is."""
        if container.get("imagePullPolicy") == "Never":
            reason = "ErrImageNeverPull"
            words = f'Container image "{image}" is not present with pull policy of Never'
        else:
            reason, words = "ImagePullBackOff", f'Back-off pulling image "{image}"'
        self._set_status(pod, pod_status.waiting(pod, reason, words))
        self._events.tell(pod, "Warning", reason, words, "kubelet")
        self._events.tell(pod, "Warning", "Failed", f"Error: {reason}", "kubelet")
        await self._hold(pod, lambda: not self._node.lacks(image))

    async def _hold(self, pod: Object, ready: Callable[[], bool]) -> None:
        """Wait until `ready()`, or raise _DeletedError when the Pod is to go."""
        while not ready():
            current = self._current(pod)
            if current is None or "deletionTimestamp" in current["metadata"]:
                raise _DeletedError
            await asyncio.sleep(0.02)

    def _unschedulable(self, pod: Object) -> str:
        """The scheduler's words where the node does not suit the Pod."""
        spec = pod["spec"]
        wants = spec["containers"][0].get("resources", {}).get("limits", {})
        namespace = pod["metadata"]["namespace"]
        for volume in spec.get("volumes", []):
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            if claim and self._store.get("persistentvolumeclaims", namespace, claim) is None:
                return f'persistentvolumeclaim "{claim}" not found'
        if int(wants.get("nvidia.com/gpu", 0)) > self._node.gpus:
            reason = "1 Insufficient nvidia.com/gpu"
        elif not self._matches(spec):
            reason = "1 node(s) didn't match Pod's node affinity/selector"
        else:
            return ""
        return f"0/1 nodes are available: {reason}. {CANNOT_HELP}"

    def _matches(self, spec: Object) -> bool:
        affinity = spec.get("affinity", {}).get("nodeAffinity", {})
        required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution", {})
        terms = required.get("nodeSelectorTerms", [])
        return not terms or any(
            all(
                self._node.labels.get(wanted["key"]) in wanted["values"]
                for wanted in term["matchExpressions"]
            )
            for term in terms
        )

    async def _run(self, pod: Object, container: Container) -> int:
        """The container's exit code; a deletion meanwhile gives it SIGTERM, then SIGKILL."""
        ended = asyncio.ensure_future(container.ended())
        try:
            while not ended.done():
                current = self._current(pod)
                if current is None or "deletionTimestamp" in current["metadata"]:
                    await self._terminate(current, container, ended)
                    break
                change = asyncio.ensure_future(self._store.change())
                await asyncio.wait({ended, change}, return_when=asyncio.FIRST_COMPLETED)
                change.cancel()
            return await ended
        finally:
            container.kill()

    async def _terminate(
        self, pod: Object | None, container: Container, ended: "asyncio.Future[int]"
    ) -> None:
        grace = pod["metadata"]["deletionGracePeriodSeconds"] if pod else 0
        if pod:
            self._events.tell(pod, "Normal", "Killing", "Stopping container main", "kubelet")
        if grace and pod and _has_hook(pod):
            await asyncio.wait({ended}, timeout=HOOK_SECONDS)
        container.signal(signal.SIGTERM if grace else signal.SIGKILL)
        await asyncio.wait({ended}, timeout=grace)
        if not ended.done():
            container.kill()

    async def _remove(self, pod: Object, *, was_running: bool) -> None:
        """Let a Pod that is to go disappear, once nothing holds it."""
        while (current := self._current(pod)) is not None:
            deleted = "deletionTimestamp" in current["metadata"]
            if deleted and (remove_when_free(self._store, current)):
                return
            if not was_running and deleted and current["status"]["phase"] == "Pending":
                current["status"]["phase"] = "Failed"
                self._set_status(current, current["status"])
                continue
            await self._store.change()

    def _current(self, pod: Object) -> Object | None:
        found = self._store.get("pods", pod["metadata"]["namespace"], pod["metadata"]["name"])
        return found if found and found["metadata"]["uid"] == pod["metadata"]["uid"] else None

    def _set_status(self, pod: Object, status: Object) -> Object:
        current = self._current(pod) or pod
        current["spec"] = pod["spec"]
        kept = [
            c for c in current["status"].get("conditions", []) if c["type"] == "DisruptionTarget"
        ]
        if kept and not any(c["type"] == "DisruptionTarget" for c in status["conditions"]):
            status["conditions"] = [*kept, *status["conditions"]]
        current["status"] = status
        return self._store.update("pods", current)


def _is_trainer(pod: Object) -> bool:
    return pod["spec"]["containers"][0].get("command", [])[: len(TRAINER)] == TRAINER


def _has_hook(pod: Object) -> bool:
    """Whether it is told to stop a while after it was deleted, when nobody is sent to it any more.

    Knative gives its containers a hook that waits for the requests running.
    """
    of_knative = "serving.knative.dev/revision" in pod["metadata"].get("labels", {})
    return of_knative or "preStop" in pod["spec"]["containers"][0].get("lifecycle", {})
