"""The requests that the backend makes of a cluster: plain dicts in, plain dicts out."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp

from infra.backend import PlaceError
from infra.kubernetes_backend.contact import Contact, Object
from infra.kubernetes_backend.fields import dicts_of, text_of
from infra.kubernetes_backend.refusals import RefusedError, refusal_of

REQUEST_SECONDS = 30.0
READ_LOG = "get pods/log"
SILENCE_SECONDS = 240.0  # of a log stream, then it is opened anew: the connection may be dead
_RAW: dict[str, Any] = {"_preload_content": False, "_request_timeout": REQUEST_SECONDS}


class Connection(Contact):
    """A connection to one namespace of a cluster; see Contact.

    What is asked for by name may be missing: then it is None, or False.
    """

    async def create_job(self, job: Object) -> Object:
        return await self._ask(
            "create jobs.batch",
            lambda: self._batch.create_namespaced_job(
                self.namespace, job, field_validation="Strict", **_RAW
            ),
        )

    async def read_job(self, name: str) -> Object | None:
        """The Job, or None where there is none of that name."""
        return await self._ask_known(
            "get jobs.batch", lambda: self._batch.read_namespaced_job(name, self.namespace, **_RAW)
        )

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
        return await self._patch_job(name, {"metadata": {"annotations": annotations}})

    async def end_retries(self, name: str) -> Object | None:
        """Have the Job fail with the pods that have failed so far; None where it is gone."""
        return await self._patch_job(name, {"spec": {"backoffLimit": 0}})

    async def _patch_job(self, name: str, body: Object) -> Object | None:
        return await self._ask_known(
            "patch jobs.batch",
            lambda: self._batch.patch_namespaced_job(
                name, self.namespace, body, _content_type="application/merge-patch+json", **_RAW
            ),
        )

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
        except PlaceError:
            # Admission comes before the name is looked at: a full quota also refuses a name
            # that is taken.
            if await self.read_service(service["metadata"]["name"]) is None:
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

    async def group_versions(self) -> set[str]:
        """The kinds' groups that the cluster has, as "apps/v1".

        All of them, as every API server has that list. What one that is away leaves a proxy to
        say of a single group, 404, is also what a cluster without the group says.
        """
        listed = await self._ask("get the API's groups", lambda: self._call("GET", "/apis"))
        groups = dicts_of(listed.get("groups"))
        versions = (one for group in groups for one in dicts_of(group.get("versions")))
        return {text_of(version.get("groupVersion")) for version in versions}

    async def select(self, resource: str, path: str, selector: str) -> list[Object]:
        """Objects of the collection at the path, with {namespace}, that a label selector takes."""
        query = [("labelSelector", selector)]
        listed = await self._ask(f"list {resource}", lambda: self._call("GET", path, query))
        return listed["items"]

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
            self.allowed.add(READ_LOG)
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
