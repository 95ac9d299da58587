"""What the API server streams: watches, and logs that may be cut."""

import asyncio
import contextlib
from collections.abc import Callable

from aiohttp import web

from tests.kubernetes_double.admission import RefusedError
from tests.kubernetes_double.api_objects import (
    container_state,
    line_of,
    missing,
    name_of,
    recent,
    selector,
    shown,
    status_of,
)
from tests.kubernetes_double.faults import Faults
from tests.kubernetes_double.kubelet import Kubelet
from tests.kubernetes_double.store import Object, Store

LOG_POLL_SECONDS = 0.02


class Streams:
    """Answers requests whose answers continue."""

    def __init__(self, store: Store, kubelet: Kubelet, faults: Faults) -> None:
        self._store, self._kubelet, self._faults = store, kubelet, faults

    async def watch(self, request: web.Request, kind: str, namespace: str) -> web.StreamResponse:
        selected = selector(request)
        since = int(request.query.get("resourceVersion") or 0)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        if since and since < self._store.oldest_revision:
            gone = status_of(RefusedError(410, "Expired", f"too old resource version: {since}"))
            await response.write(line_of({"type": "ERROR", "object": gone}))
            return response
        seconds = float(request.query.get("timeoutSeconds") or 1800)
        with contextlib.suppress(ConnectionResetError, asyncio.TimeoutError):
            async with asyncio.timeout(seconds), self._faults.cuttable(response):
                if not since:
                    since = self._store.revision
                    for obj in filter(selected, self._store.list(kind, namespace)):
                        await response.write(line_of({"type": "ADDED", "object": obj}))
                await self._send_changes(response, kind, namespace, since, selected)
        return response

    async def _send_changes(
        self,
        response: web.StreamResponse,
        kind: str,
        namespace: str,
        since: int,
        selected: Callable[[Object], bool],
    ) -> None:
        while True:
            for revision, what, of_kind, obj in list(self._store.history):
                if revision <= since:
                    continue
                since = revision
                place = obj["metadata"]["namespace"]
                if of_kind == kind and namespace in ("", place) and selected(obj):
                    await response.write(line_of({"type": what, "object": obj}))
            if since >= self._store.revision:
                await self._store.change()

    async def log(self, request: web.Request) -> web.StreamResponse:
        namespace, name = request.match_info["namespace"], name_of(request)
        pod = self._store.get("pods", namespace, name)
        if pod is None:
            raise missing("pods", name)
        container = self._kubelet.containers.get(pod["metadata"]["uid"])
        if container is None:
            first = pod["spec"]["containers"][0]["name"]
            words = f'container "{first}" in pod "{name}" is waiting to start: ContainerCreating'
            raise RefusedError(400, "BadRequest", words)
        query = request.query
        lines = container.log.read_bytes().splitlines(keepends=True)
        offset = sum(map(len, lines))
        chosen = [line for line in lines if recent(line, query.get("sinceTime"))]
        if "tailLines" in query:
            chosen = chosen[-int(query["tailLines"]) :] if int(query["tailLines"]) else []
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        stamped = query.get("timestamps") == "true"
        with contextlib.suppress(ConnectionResetError):
            async with self._faults.cuttable(response, log=True):
                for line in chosen:
                    await self._faults.log_bytes(response, shown(line, stamped))
                if query.get("follow") == "true":
                    await self._follow(response, namespace, pod, offset, stamped)
        return response

    async def _follow(
        self, response: web.StreamResponse, namespace: str, pod: Object, offset: int, stamped: bool
    ) -> None:
        container = self._kubelet.containers[pod["metadata"]["uid"]]
        with open(container.log, "rb") as log:
            log.seek(offset)
            while True:
                current = self._store.get("pods", namespace, pod["metadata"]["name"])
                ended = current is None or "terminated" in container_state(current)
                position = log.tell()
                for line in log.readlines():
                    if not line.endswith(b"\n"):
                        log.seek(position)
                        break
                    position += len(line)
                    await self._faults.log_bytes(response, shown(line, stamped))
                if ended:
                    return
                await asyncio.sleep(LOG_POLL_SECONDS)
