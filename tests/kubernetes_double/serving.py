"""Controllers of InferenceServices and Deployments: revisions as Pods, readiness, addresses.

Every Pod is a real server. An address (an InferenceService's or a Service's) is a port of
this machine that hands connections on to the server which has the traffic. A revision has
one server, or none (scaling.py); more than one are not here.
"""

import asyncio
import contextlib
import copy
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import aiohttp

from tests.kubernetes_double import standard_serving
from tests.kubernetes_double.admission import violations_of_restricted
from tests.kubernetes_double.api_objects import container_state
from tests.kubernetes_double.deletion import delete
from tests.kubernetes_double.kubelet import Kubelet, Node
from tests.kubernetes_double.scaling import Activity
from tests.kubernetes_double.store import Object, Store, generated_suffix

LOOK_SECONDS = 0.05
MODEL_FOLDER = "/mnt/models"
# Of a predictor, what is no part of its pod's spec.
OF_KNATIVE = (
    *("minReplicas", "maxReplicas", "canaryTrafficPercent", "timeout"),
    *("name", "labels", "annotations"),
)


Target = Callable[[], AbstractAsyncContextManager[int | None]]


class Forwarder:
    """A port that hands every connection on to the one that `target` names at that moment."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.Task[None]] = set()

    async def start(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._open:
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            with contextlib.suppress(OSError):
                async with self._target() as port:
                    there = await asyncio.open_connection("127.0.0.1", port or 9)
                    await asyncio.gather(_copy(reader, there[1]), _copy(there[0], writer))
        finally:
            writer.close()
            self._open.discard(task)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()


class ServingControllers:
    """Look at every service again and again, and make what should be."""

    def __init__(self, store: Store, kubelet: Kubelet, node: Node, *, knative: bool = True) -> None:
        self._store, self._kubelet, self._node = store, kubelet, node
        self._knative, self._standard = knative, standard_serving.StandardMode(store)
        self._revisions: dict[str, list[Object]] = {}  # templates, by the service's uid
        self._latest_ready: dict[str, str] = {}  # revision
        self._rolled_out: dict[str, str] = {}  # revision that has the traffic
        self._activity = Activity(lambda: node.minute_seconds)
        self._forwarders: dict[str, tuple[Forwarder, int]] = {}

    async def run(self) -> None:
        async with aiohttp.ClientSession() as session:
            try:
                while True:
                    await self.look(session)
                    await asyncio.sleep(LOOK_SECONDS)
            finally:
                for forwarder, _ in self._forwarders.values():
                    await forwarder.stop()

    async def look(self, session: aiohttp.ClientSession) -> None:
        """Bring every service a step nearer to what it should be."""
        for found in self._still_there("inferenceservices"):
            if standard_serving.is_standard(found):
                await self._in_standard_mode(found)
            elif self._knative:
                await self._inference_service(found, session)
        for found in self._still_there("deployments"):
            await self._deployment(found, session)
        for found in self._still_there("services"):
            await self._service(found)

    def _still_there(self, kind: str) -> Iterator[Object]:
        """Each as it is by then: while the one before was asked, it may have been deleted."""
        for listed in self._store.list(kind):
            metadata = listed["metadata"]
            found = self._store.get(kind, metadata["namespace"], metadata["name"])
            if found is not None and found["metadata"]["uid"] == metadata["uid"]:
                yield found

    # --- InferenceServices --------------------------------------------------------------

    async def _inference_service(self, found: Object, session: aiohttp.ClientSession) -> None:
        metadata, predictor = found["metadata"], found["spec"]["predictor"]
        spec = {key: value for key, value in predictor.items() if key not in OF_KNATIVE}
        labels = predictor.get("labels", {})
        template = {"spec": spec, "labels": labels, "annotations": metadata["annotations"]}
        revisions = self._revisions.setdefault(metadata["uid"], [])
        if not revisions or revisions[-1] != template:
            revisions.append(copy.deepcopy(template))
        names = [f"{metadata['name']}-predictor-{n:05d}" for n in range(1, len(revisions) + 1)]
        newest = names[-1]
        for name, revision in zip(names, revisions, strict=True):
            if name in (newest, self._rolled_out.get(metadata["uid"])):
                self._scale(found, name, revision)
        pods = {p["metadata"]["name"]: p for p in self._owned(found)}
        answering = {n for n, pod in pods.items() if await self._is_ready(pod, session)}
        self._activity.note(answering, {n for n, p in pods.items() if has_ended(p)})
        ready = newest in answering or self._activity.is_asleep(newest)
        before = self._rolled_out.get(metadata["uid"], "")
        trial = predictor.get("canaryTrafficPercent") == 0 and before != ""
        if ready:
            self._latest_ready[metadata["uid"]] = newest
        if not trial:
            # All traffic goes to the newest that is ready, which need not be the newest.
            self._rolled_out[metadata["uid"]] = self._latest_ready.get(metadata["uid"], "")
        for name, pod in pods.items():
            serves = name in (newest, self._rolled_out.get(metadata["uid"]))
            if ready and not serves and not self._activity.is_asked(name):
                delete(self._store, "pods", pod, "Background", None)
        port = await self._address(metadata["uid"], lambda: self._to_rolled_out(metadata))
        status = _status(metadata, newest, ready, pods.get(newest), f"http://127.0.0.1:{port}")
        if ready:
            traffic = [{"revisionName": newest, "latestRevision": True, "percent": 100}]
            own = f"{metadata['uid']}/{newest}"
            tagged = await self._address(own, lambda: self._to_revision(metadata, newest))
            traffic[0] |= {"tag": "latest", "url": f"http://127.0.0.1:{tagged}"}
            if trial:
                traffic[0]["percent"] = 0
                traffic.append({"revisionName": before, "percent": 100, "tag": "prev"})
            status["components"]["predictor"]["traffic"] = traffic
        self._set_status("inferenceservices", found, status)

    async def _in_standard_mode(self, found: Object) -> None:
        metadata = found["metadata"]
        name, status = self._standard.reconcile(found, _with_model)
        self._rolled_out[metadata["uid"]] = name

        @asynccontextmanager
        async def target() -> AsyncIterator[int | None]:
            app = {"app": f"isvc.{self._rolled_out[metadata['uid']]}"}
            yield self._port_of(metadata["namespace"], app)

        port = await self._address(metadata["uid"], target)
        ready = any(c["type"] == "Ready" and c["status"] == "True" for c in status["conditions"])
        if ready or "url" in found.get("status", {}):
            status["url"] = f"http://127.0.0.1:{port}"
        self._set_status("inferenceservices", found, status)

    def _scale(self, found: Object, name: str, revision: Object) -> None:
        """Have the revision's Pod, made from what the revision says, or none."""
        metadata, predictor = found["metadata"], found["spec"]["predictor"]
        pod = self._store.get("pods", metadata["namespace"], name)
        if not self._activity.wants_server(name, predictor, revision["annotations"]):
            if pod and "deletionTimestamp" not in pod["metadata"]:
                delete(self._store, "pods", pod, "Background", None)
        elif pod is None:
            labels = {"serving.kserve.io/inferenceservice": metadata["name"], **revision["labels"]}
            labels["serving.knative.dev/revision"] = name
            self._make_pod(found, name, labels, _with_model(revision["spec"]))

    def _to_rolled_out(self, metadata: Object) -> AbstractAsyncContextManager[int | None]:
        return self._to_revision(metadata, self._rolled_out.get(metadata["uid"], ""))

    @asynccontextmanager
    async def _to_revision(self, metadata: Object, name: str) -> AsyncIterator[int | None]:
        """The port of the revision's server, which is started where it has none."""
        with self._activity.asked(name):
            await self._activity.awake(name)
            pod = self._store.get("pods", metadata["namespace"], name)
            yield self._port(pod) if pod else None

    # --- Deployments and Services -------------------------------------------------------

    async def _deployment(self, found: Object, session: aiohttp.ClientSession) -> None:
        metadata, template = found["metadata"], found["spec"]["template"]
        if not list(self._owned(found)):
            name = f"{metadata['name']}-{generated_suffix()}"
            self._make_pod(found, name, template["metadata"]["labels"], template["spec"])
        (pod,) = self._owned(found)
        count = int(await self._is_ready(pod, session))
        status: Object = {"observedGeneration": metadata["generation"], "replicas": 1}
        status |= {"updatedReplicas": 1, "readyReplicas": count, "availableReplicas": count}
        if has_ended(pod):
            words = f'ReplicaSet "{metadata["name"]}" has timed out progressing.'
            late = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}
            status["conditions"] = [{**late, "message": words}]
        self._set_status("deployments", found, status)

    async def _service(self, found: Object) -> None:
        metadata = found["metadata"]
        if found["spec"].get("clusterIP") == "None":
            return

        @asynccontextmanager
        async def target() -> AsyncIterator[int | None]:
            yield one_of_its_pods()

        def one_of_its_pods() -> int | None:
            now = self._store.get("services", metadata["namespace"], metadata["name"])
            selector = now["spec"]["selector"] if now else {"no": "pod"}
            return self._port_of(metadata["namespace"], selector)

        port = await self._address(metadata["uid"], target)
        name, address = metadata["name"], f"127.0.0.1:{port}"
        self._node.hosts[f"{name}.{metadata['namespace']}.svc"] = address
        for served in found["spec"].get("ports", []):
            self._node.hosts[f"{name}:{served['port']}"] = address

    # --- what both need -----------------------------------------------------------------

    def _make_pod(self, owner: Object, name: str, labels: Object, spec: Object) -> None:
        assert violations_of_restricted(spec) == [], "Pod Security would refuse its Pods"
        metadata = owner["metadata"]
        reference = {"kind": owner["kind"], "name": metadata["name"], "uid": metadata["uid"]}
        pod = {
            "metadata": {
                "name": name,
                "uid": str(uuid.uuid4()),
                "labels": labels,
                "ownerReferences": [{**reference, "apiVersion": owner["apiVersion"]}],
            },
            "spec": copy.deepcopy(spec),
            "status": {"phase": "Pending", "qosClass": "Burstable"},
        }
        self._store.create("pods", metadata["namespace"], pod)

    def _port_of(self, namespace: str, selector: Object) -> int | None:
        """The port of a pod with those labels that is not being deleted."""
        for pod in self._store.list("pods", namespace):
            gone = "deletionTimestamp" in pod["metadata"]
            if not gone and selector.items() <= pod["metadata"].get("labels", {}).items():
                return self._port(pod)
        return None

    def _owned(self, owner: Object) -> list[Object]:
        owned = [obj for kind, obj in self._store.owned(owner) if kind == "pods"]
        return [pod for pod in owned if "deletionTimestamp" not in pod["metadata"]]

    def _port(self, pod: Object) -> int | None:
        container = self._kubelet.containers.get(pod["metadata"]["uid"])
        return container.port if container else None

    async def _is_ready(self, pod: Object | None, session: aiohttp.ClientSession) -> bool:
        """Whether the readiness probe of the Pod's container succeeds."""
        if pod is None or "running" not in container_state(pod):
            return False
        probe = pod["spec"]["containers"][0].get("readinessProbe")
        if probe is None:
            return True
        url = f"http://127.0.0.1:{self._port(pod)}{probe['httpGet']['path']}"
        try:
            async with session.get(url, timeout=aiohttp.ClientTimeout(5)) as response:
                return response.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def _address(self, uid: str, target: Target) -> int:
        if uid not in self._forwarders:
            forwarder = Forwarder(target)
            self._forwarders[uid] = (forwarder, await forwarder.start())
        return self._forwarders[uid][1]

    def _set_status(self, kind: str, found: Object, status: Object) -> None:
        metadata = found["metadata"]
        current = self._store.get(kind, metadata["namespace"], metadata["name"])
        # Somebody may have changed it while its server was asked.
        if current and current["metadata"].get("generation") == metadata.get("generation"):
            self._store.update(kind, {**current, "status": status})


def has_ended(pod: Object) -> bool:
    return "terminated" in container_state(pod)


def _with_model(spec: Object) -> Object:
    """What KServe's webhook does for a storage URI of a claim: mount it."""
    made = copy.deepcopy(spec)
    container = made["containers"][0]
    variables = {variable["name"]: variable.get("value") for variable in container["env"]}
    claim, _, folder = variables["STORAGE_URI"].removeprefix("pvc://").partition("/")
    mount = {"name": "kserve-pvc-source", "mountPath": MODEL_FOLDER, "subPath": folder}
    container["volumeMounts"].append({**mount, "readOnly": True})
    source = {"name": "kserve-pvc-source", "persistentVolumeClaim": {"claimName": claim}}
    made["volumes"].append(source)
    return made


def _status(metadata: Object, newest: str, ready: bool, pod: Object | None, url: str) -> Object:
    predictor: dict[str, Any] = {"latestCreatedRevision": newest}
    model: Object = {"transitionStatus": "UpToDate" if ready else "InProgress"}
    ended = container_state(pod).get("terminated") if pod else None
    if ready:
        predictor |= {"latestReadyRevision": newest, "url": url}
        condition: Object = {"status": "True"}
    else:
        words = f'Configuration "{metadata["name"]}-predictor" is waiting for a Revision'
        condition = {"status": "Unknown", "reason": "RevisionMissing", "message": words}
    if ended:
        failure = {"reason": "ModelLoadFailed", "exitCode": ended["exitCode"]}
        failure["message"] = ended.get("message", "")
        model = {"transitionStatus": "BlockedByFailedLoad", "lastFailureInfo": failure}
        model["states"] = {"activeModelState": "", "targetModelState": "FailedToLoad"}
    return {
        "observedGeneration": metadata["generation"],
        "url": url,
        "conditions": [{"type": kind, **condition} for kind in ("PredictorReady", "Ready")],
        "components": {"predictor": predictor},
        "modelStatus": model,
    }
