"""The requests that the backend makes, as plain dicts, retried while that can help.

This is the only module that loads the Kubernetes client. What is retried: lost
connections, time-outs, 429 and 5xx, and a 401 of credentials that were good before
(they are read again each time). Everything else is raised at once.
"""

import asyncio
import contextlib
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Self

import aiohttp
from kubernetes_asyncio import client, config
from kubernetes_asyncio.config.kube_config import KUBE_CONFIG_DEFAULT_LOCATION

from infra.backend import ContactError, PlaceError
from infra.kubernetes_backend.refusals import RefusedError, in_words, refusal_of

Object = dict[str, Any]
Tell = Callable[[str], None]
PATIENCE_SECONDS = 20 * 60.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.25, 15.0
REQUEST_SECONDS = 30.0
SILENCE_SECONDS = 240.0  # of a log stream, then it is opened anew: the connection may be dead
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
LOST = (aiohttp.ClientError, TimeoutError, OSError)
logger = logging.getLogger(__name__)


class Connection:
    """A connection to one namespace of a cluster; an async context manager.

    Args:
        namespace: Empty: the kubeconfig's, or the one that this pod runs in.
        patience_seconds: How long a request is tried again while the cluster is away.
        tell: Called with a line for people when contact is lost, and found again.
        was_accepted: The cluster has taken these credentials before: one that refuses them
            now may take them again, or those that replace them.
        clock: Seconds that only grow.
        pause: Lets so many of them pass.
    """

    def __init__(
        self,
        namespace: str = "",
        *,
        patience_seconds: float = PATIENCE_SECONDS,
        tell: Tell = logger.warning,
        was_accepted: bool = False,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._clock, self._pause = clock, pause
        self.namespace = namespace
        self._given_namespace = namespace
        self._patience_seconds = patience_seconds
        self._tell = tell
        self.was_accepted = was_accepted
        self._api: Any = None  # typed for models; here plain dicts go in and bytes come out
        self._batch: Any = None
        self._core: Any = None
        self._credentials: Any = None
        self._clients: list[client.ApiClient] = []

    async def __aenter__(self) -> Self:
        await self._load()
        return self

    async def __aexit__(self, *error: object) -> None:
        for made in self._clients:
            await made.close()

    @property
    def is_namespace_given(self) -> bool:
        """Whether the settings name it, rather than the kubeconfig."""
        return bool(self._given_namespace)

    # --- requests -----------------------------------------------------------------------

    async def create_job(self, job: Object) -> Object:
        return await self._ask(
            "create jobs.batch",
            lambda: self._batch.create_namespaced_job(
                self.namespace, job, field_validation="Strict", **_RAW
            ),
        )

    async def read_job(self, name: str) -> Object | None:
        """The Job, or None where there is none of that name."""
        try:
            return await self._ask(
                "get jobs.batch",
                lambda: self._batch.read_namespaced_job(name, self.namespace, **_RAW),
            )
        except RefusedError as error:
            if error.code == 404:
                return None
            raise

    async def list_jobs(self, selector: str) -> list[Object]:
        listed = await self._ask(
            "list jobs.batch",
            lambda: self._batch.list_namespaced_job(
                self.namespace, label_selector=selector, **_RAW
            ),
        )
        return listed["items"]

    async def annotate_job(self, name: str, annotations: dict[str, str | None]) -> Object | None:
        """Set annotations, None removes one; None where the Job is gone."""
        body = {"metadata": {"annotations": annotations}}
        try:
            return await self._ask(
                "patch jobs.batch",
                lambda: self._batch.patch_namespaced_job(
                    name,
                    self.namespace,
                    body,
                    _content_type="application/merge-patch+json",
                    **_RAW,
                ),
            )
        except RefusedError as error:
            if error.code == 404:
                return None
            raise

    async def delete_job(self, job: Object) -> bool:
        """Begin the Job's deletion, its pods first; False where it is not as `job` any more."""
        metadata = job["metadata"]
        seen = {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]}
        # In the foreground: the name stays taken until the last pod has ended.
        options = {"propagationPolicy": "Foreground", "preconditions": seen}
        try:
            await self._ask(
                "delete jobs.batch",
                lambda: self._batch.delete_namespaced_job(
                    metadata["name"], self.namespace, body=options, **_RAW
                ),
            )
        except RefusedError as error:
            if error.code not in (404, 409):
                raise
            return False
        return True

    async def create_service(self, service: Object) -> bool:
        """Make the Service; False where one of that name is there."""
        try:
            await self._ask(
                "create services",
                lambda: self._core.create_namespaced_service(
                    self.namespace, service, field_validation="Strict", **_RAW
                ),
            )
        except RefusedError as error:
            if error.code != 409:
                raise
            return False
        return True

    async def read_service(self, name: str) -> Object | None:
        """The Service, or None where there is none of that name."""
        return await self.read("services", f"/api/v1/namespaces/{{namespace}}/services/{name}")

    async def list_pods(self, job: Object) -> list[Object]:
        """The Job's pods, oldest first."""
        return await self.select_pods(
            f"batch.kubernetes.io/controller-uid={job['metadata']['uid']}"
        )

    async def list_events(self, uid: str) -> list[Object]:
        """Events about the object of that uid."""
        selector = f"involvedObject.uid={uid}"
        listed = await self._ask(
            "list events",
            lambda: self._core.list_namespaced_event(
                self.namespace, field_selector=selector, **_RAW
            ),
        )
        return listed["items"]

    async def apply(self, resource: str, path: str, body: Object, manager: str) -> Object:
        """Bring an object to what `body` says, server-side, as the field manager `manager`.

        Args:
            resource: As RBAC says it, for errors: "services".
            path: Of the object's collection, with {namespace}.
        """
        query = [("fieldManager", manager), ("force", "true"), ("fieldValidation", "Strict")]
        name = f"{path}/{body['metadata']['name']}"
        headers = {"Content-Type": "application/apply-patch+yaml"}
        return await self._ask(
            f"patch {resource}", lambda: self._call("PATCH", name, query, headers, body)
        )

    async def create(
        self, resource: str, path: str, body: Object, *, dry_run: bool = False
    ) -> Object:
        """Make an object at the path of its collection, or with `dry_run` have it judged alone."""
        query = [("fieldValidation", "Strict"), *([("dryRun", "All")] if dry_run else [])]
        headers = {"Content-Type": "application/json"}
        return await self._ask(
            f"create {resource}", lambda: self._call("POST", path, query, headers, body)
        )

    async def read(self, resource: str, path: str) -> Object | None:
        """What is at the path, with {namespace}, or None."""
        return await self._ask_known(f"get {resource}", lambda: self._call("GET", path))

    async def delete(self, resource: str, path: str) -> bool:
        """Delete the object at the path, in the background; whether it was there."""
        done = await self._ask_known(f"delete {resource}", lambda: self._call("DELETE", path))
        return done is not None

    async def select_pods(self, selector: str) -> list[Object]:
        """Pods of a label selector, oldest first."""
        listed = await self._ask(
            "list pods",
            lambda: self._core.list_namespaced_pod(self.namespace, label_selector=selector, **_RAW),
        )
        return sorted(listed["items"], key=lambda pod: pod["metadata"]["creationTimestamp"])

    async def _ask_known(self, action: str, request: Callable[[], Awaitable[Any]]) -> Object | None:
        try:
            return await self._ask(action, request)
        except RefusedError as error:
            if error.code == 404:
                return None
            raise

    async def _call(
        self,
        method: str,
        path: str,
        query: list[tuple[str, str]] | None = None,
        headers: dict[str, str] | None = None,
        body: Object | None = None,
    ) -> aiohttp.ClientResponse:
        """A request for kinds that the client has no class for, or no server-side apply."""
        return await self._api.call_api(
            path.replace("{namespace}", self.namespace),
            method,
            {},
            query or [],
            {"Accept": "application/json", **(headers or {})},
            body,
            auth_settings=["BearerToken"],
            _return_http_data_only=True,
            **_RAW,
        )

    @contextlib.asynccontextmanager
    async def log(
        self, pod: str, container: str, *, since: str | None, tail_lines: int | None, follow: bool
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Pieces of a pod's log, with time stamps, as they come; not retried.

        Raises:
            RefusedError: The log can't be had (now).
        """
        response = await self._open_log(pod, container, since, tail_lines, follow)
        try:
            if response.status >= 300:
                raise refusal_of(response.status, await response.read())
            yield response.content.iter_any()
        finally:
            response.close()

    async def _open_log(
        self, pod: str, container: str, since: str | None, tail_lines: int | None, follow: bool
    ) -> aiohttp.ClientResponse:
        query = [("container", container), ("timestamps", "true"), ("follow", str(follow).lower())]
        query += [("sinceTime", since)] if since is not None else []
        query += [("tailLines", str(tail_lines))] if tail_lines is not None else []
        # The generated method knows no sinceTime, which the API has; the rest is the client's.
        return await self._api.call_api(
            "/api/v1/namespaces/{namespace}/pods/{name}/log",
            "GET",
            {"namespace": self.namespace, "name": pod},
            query,
            {"Accept": "*/*"},
            auth_settings=["BearerToken"],
            _preload_content=False,
            _return_http_data_only=True,
            _request_timeout=(REQUEST_SECONDS, SILENCE_SECONDS),
        )

    # --- how ----------------------------------------------------------------------------

    async def _ask(self, action: str, request: Callable[[], Awaitable[Any]]) -> Object:
        """Make a request until it is answered.

        Raises:
            RefusedError: Answered with 404 or 409, which callers expect.
            PlaceError: Refused, in plain words.
            ContactError: No answer for longer than the patience.
        """
        began, pause, told = self._clock(), FIRST_PAUSE_SECONDS, False
        while True:
            try:
                answer = await self._once(request)
            except RefusedError as error:
                expired = error.code == 401 and self.was_accepted
                # Not the object, which is new, but a quota was changed by somebody else meanwhile.
                crossed = error.reason == "Conflict" and action.startswith("create ")
                if not (error.transient or expired or crossed):
                    if error.code == 409 or (error.code == 404 and "namespaces" not in str(error)):
                        raise
                    raise in_words(error, action, self.namespace) from error
                problem: Exception = error
                pause = max(pause, min(error.retry_after_seconds, LONGEST_PAUSE_SECONDS))
            except LOST as error:
                problem = error
            else:
                if told:
                    self._tell("the cluster answers again")
                return answer
            if self._clock() - began > self._patience_seconds:
                raise ContactError(
                    f"the cluster did not answer for {self._patience_seconds:.0f} seconds "
                    f"(asked to {action}: {_shown(problem)}). The step goes on without us; "
                    "run the same again to follow it."
                ) from problem
            if not told and self._clock() - began > 1.0:
                told = True
                self._tell(f"the cluster does not answer ({_shown(problem)}); trying on")
            await self._pause(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    async def _once(self, request: Callable[[], Awaitable[Any]]) -> Object:
        response = await request()
        body = await response.read()
        if response.status < 300:
            self.was_accepted = True
            return json.loads(body)
        error = refusal_of(response.status, body, response.headers.get("Retry-After", ""))
        if error.code == 401 and self.was_accepted:
            with contextlib.suppress(PlaceError):  # a file that is being written: read it next time
                await self._load()
        raise error

    async def _load(self) -> None:
        """Read the credentials, anew where they were read before."""
        settings = client.Configuration()
        try:
            inside = await _load_into(settings)
        except config.ConfigException as error:
            raise PlaceError(
                f"there is no cluster to talk to ({error}). Set KUBECONFIG, or run inside one."
            ) from error
        credentials = (settings.host, settings.api_key, settings.cert_file, settings.ssl_ca_cert)
        if credentials == self._credentials:
            return
        # The client before stays open: a log may still be read through it.
        self._credentials = credentials
        self._api = client.ApiClient(settings)
        self._clients.append(self._api)
        self._batch, self._core = client.BatchV1Api(self._api), client.CoreV1Api(self._api)
        self.namespace = self._given_namespace or _default_namespace(inside)


_RAW: dict[str, Any] = {"_preload_content": False, "_request_timeout": REQUEST_SECONDS}


async def _load_into(settings: client.Configuration) -> bool:
    """Fill in address and credentials; whether they are those of a pod."""
    if os.environ.get("KUBECONFIG") or Path(KUBE_CONFIG_DEFAULT_LOCATION).expanduser().exists():
        location = os.environ.get("KUBECONFIG") or KUBE_CONFIG_DEFAULT_LOCATION
        await config.load_kube_config(config_file=location, client_configuration=settings)
        return False
    config.load_incluster_config(client_configuration=settings)
    return True


def _default_namespace(inside: bool) -> str:
    if inside:
        return NAMESPACE_FILE.read_text(encoding="utf-8").strip()
    location = os.environ.get("KUBECONFIG") or KUBE_CONFIG_DEFAULT_LOCATION
    _, current = config.list_kube_config_contexts(config_file=location)
    return (current or {}).get("context", {}).get("namespace") or "default"


def _shown(problem: Exception) -> str:
    return str(problem) or type(problem).__name__
