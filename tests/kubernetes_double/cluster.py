"""A cluster that a test starts and stops: `with Cluster(folder) as cluster: ...`

It runs in a thread of its own. Its attributes `node` and `faults` may be changed at any
time; what touches objects goes through `do`, in the cluster's own event loop.
"""

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml
from aiohttp import web

from tests.kubernetes_double.events import Events
from tests.kubernetes_double.faults import TOKEN, Faults
from tests.kubernetes_double.job_controller import JobController
from tests.kubernetes_double.kubelet import Kubelet, Node
from tests.kubernetes_double.namespace_rules import NamespaceRules
from tests.kubernetes_double.permissions import Permissions, token_of
from tests.kubernetes_double.server import Server
from tests.kubernetes_double.serving import ServingControllers
from tests.kubernetes_double.store import Object, Store

NAMESPACE = "default"
PATIENCE_SECONDS = 900.0


class Cluster:
    """One node, one namespace, one API server on 127.0.0.1.

    Args:
        folder: For logs, the Pods' own files and the kubeconfig.
        volumes: The folder of each PersistentVolumeClaim.
        backoff_seconds: Before the first Pod that replaces a failed one (real: 10).
        port: 0 takes a free one.
        kserve: Whether KServe is installed.
        knative: Whether KServe has Knative; without it an InferenceService is in Standard mode.
        manifests: Applied to the namespace. With any, it is as strict as it can be: every field
            is validated, Pod Security is "restricted", and service accounts have these rights.
    """

    def __init__(
        self,
        folder: Path,
        volumes: dict[str, Path] | None = None,
        *,
        backoff_seconds: float = 0.05,
        port: int = 0,
        kserve: bool = True,
        knative: bool = True,
        manifests: Sequence[Object] = (),
    ) -> None:
        self.folder = folder
        self.volumes = volumes or {}
        self.faults = Faults()
        self.rules = NamespaceRules(restricted=bool(manifests))
        self.node = Node()
        self.store: Store
        self._backoff_seconds = backoff_seconds
        self._kserve, self._knative = kserve, knative
        self._guarded = bool(manifests)
        self._permissions = Permissions(manifests)
        self.faults.permits = self._permissions.allow
        self.faults.tokens |= self._permissions.tokens
        self.port = port
        self._ready = threading.Event()
        self._stop: asyncio.Event
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._thread.start()
        self._ready.wait()
        if self._failure:
            raise self._failure
        self.kubeconfig = self.folder / "kubeconfig"
        self.write_kubeconfig()
        for account in self._permissions.accounts:
            path = self.folder / "accounts" / f"kubeconfig-{account}"
            path.parent.mkdir(exist_ok=True)
            self.node.kubeconfigs[account] = self.write_kubeconfig(token_of(account), path=path)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(RuntimeError):  # its loop has ended by a failure, which is raised
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        if self._failure:
            raise self._failure

    def write_kubeconfig(self, token: str = TOKEN, *, path: Path | None = None) -> Path:
        """A kubeconfig for this cluster, written over the one that was there."""
        path = path or self.kubeconfig
        url = f"http://127.0.0.1:{self.port}"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": {"server": url}}],
            "users": [{"name": "test", "user": {"token": token}}],
            "contexts": [
                {
                    "name": "test",
                    "context": {"cluster": "test", "user": "test", "namespace": NAMESPACE},
                }
            ],
            "current-context": "test",
        }
        beside = path.with_suffix(".new")
        beside.write_text(yaml.safe_dump(config))
        return beside.replace(path)

    def do(self, action: Callable[[], Any]) -> Any:
        """Call `action` in the cluster's event loop and return what it returns."""

        async def call() -> Any:
            return action()

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result()

    def create(self, kind: str, manifest: Object) -> Object:
        """Store an object as if it had been there before."""
        return self.do(lambda: self.store.create(kind, NAMESPACE, manifest))

    def jobs(self) -> list[Object]:
        return self.do(lambda: self.store.list("jobs"))

    def pods(self) -> list[Object]:
        return self.do(lambda: self.store.list("pods"))

    def resume(self, name: str) -> None:
        """As Kueue does with a Job that it admits."""

        def change() -> None:
            job = self.store.get("jobs", NAMESPACE, name)
            assert job is not None
            job["spec"]["suspend"] = False
            self.store.update("jobs", job)

        self.do(change)

    def running_pod(self) -> Object:
        """The Pod that runs, as soon as there is one."""
        return self.wait_for(
            lambda: next((p for p in self.pods() if p["status"]["phase"] == "Running"), None)
        )

    def wait_for(
        self, found: Callable[[], Any], *, patience_seconds: float = PATIENCE_SECONDS
    ) -> Any:
        """What `found` returns, once that is something."""
        deadline = time.monotonic() + patience_seconds
        while not (result := found()):
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.01)
        return result

    def history(self) -> list[tuple[int, str, str, Object]]:
        """Every change so far: (revision, type, kind, object)."""
        return self.do(lambda: list(self.store.history))

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - handed to the test's own thread
            self._failure = error
            is_started = self._ready.is_set()
            self._ready.set()
            # What is tested would wait for this API for ever. The test ends now, as by its timeout.
            if is_started and callable(signal.getsignal(signal.SIGALRM)):
                os.kill(os.getpid(), signal.SIGALRM)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self.store = Store()
        events = Events(self.store)
        self.controller = JobController(self.store, events, self._backoff_seconds, self.rules)
        pods = self.folder / "pods"
        self.kubelet = Kubelet(self.store, events, self.node, pods, self.volumes)
        for claim in self.volumes:
            self.store.create("persistentvolumeclaims", NAMESPACE, {"metadata": {"name": claim}})
        server = Server(self.store, self.kubelet, self.faults, self.rules, strict=self._guarded)
        app = server.app(kserve=self._kserve, knative=self._knative)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port)
        await site.start()
        assert site._server is not None
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
        self._ready.set()
        controllers = ServingControllers(self.store, self.kubelet, self.node, knative=self._knative)
        serving = asyncio.create_task(controllers.run())
        try:
            await asyncio.wait(
                {serving, asyncio.create_task(self._stop.wait())},
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await serving
            self.faults.cut_streams()
            await self.kubelet.stop()
            await runner.cleanup()
        if self.kubelet.failures:
            raise self.kubelet.failures[0]
