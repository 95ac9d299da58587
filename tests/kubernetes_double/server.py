"""The API server: verbs over HTTP, watches, logs, Status bodies, and faults on demand.

Source of the paths and parameters: the Kubernetes API reference; of the bodies: the recordings.
"""

import copy
from collections.abc import Awaitable, Callable

from aiohttp import web

from tests.kubernetes_double import admission
from tests.kubernetes_double.admission import RefusedError
from tests.kubernetes_double.api_objects import (
    body_of,
    complete_job,
    conflict,
    details_of,
    kind_of,
    merged,
    missing,
    name_of,
    qualified,
    selector,
    status_of,
    unmet_precondition,
    without,
)
from tests.kubernetes_double.deletion import delete
from tests.kubernetes_double.faults import Faults, Request, TextAnswerError
from tests.kubernetes_double.kubelet import Kubelet
from tests.kubernetes_double.namespace_rules import NamespaceRules
from tests.kubernetes_double.store import KINDS, Object, Store, generated_suffix
from tests.kubernetes_double.streams import Streams

BACKGROUND = "Background"


class Server:
    """Answers requests from the store.

    Args:
        strict: Validate every object as if `fieldValidation=Strict` had been asked for.
    """

    def __init__(
        self, store: Store, kubelet: Kubelet, faults: Faults, rules: NamespaceRules, *, strict: bool
    ) -> None:
        self._store, self._faults, self._rules = store, faults, rules
        self._streams = Streams(store, kubelet, faults)
        self._strict = strict
        self._applied: dict[tuple[str, str, str, str], Object] = {}

    def app(self, *, kserve: bool, knative: bool) -> web.Application:
        app = web.Application(middlewares=[self._answer], client_max_size=4 << 20)
        app.router.add_get("/version", self._version)
        self._groups_there = ["batch/v1", "apps/v1"]
        self._groups_there += ["serving.kserve.io/v1beta1"] if kserve else []
        for root in ("/api/v1", *(f"/apis/{group}" for group in self._groups_there)):
            app.router.add_get(root, self._resources)
            app.router.add_route("*", root + "/{kind}", self._collection)
            app.router.add_route("*", root + "/namespaces/{namespace}/{kind}", self._collection)
            named = root + "/namespaces/{namespace}/{kind}/{name}"
            app.router.add_get(named + "/log", self._streams.log)
            app.router.add_route("*", named, self._object)
        if kserve and knative:
            self._groups_there.append("serving.knative.dev/v1")
            app.router.add_get("/apis/serving.knative.dev/v1", self._resources)
        reviews = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        app.router.add_post(reviews, self._review_access)
        app.router.add_get("/api", self._versions)
        app.router.add_get("/apis", self._groups)
        return app

    @web.middleware
    async def _answer(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Let faults and permissions come first; make a Status of what is refused."""
        try:
            asked = Request.of(request)
            await self._faults.before(asked, request)
            answer = await handler(request)
            self._faults.after(asked)
            return answer
        except TextAnswerError as refused:
            headers = {"Retry-After": "1"}
            return web.Response(status=refused.code, text=refused.message, headers=headers)
        except RefusedError as refused:
            return web.json_response(status_of(refused), status=refused.code)
        except web.HTTPNotFound:
            return web.json_response(
                status_of(RefusedError(404, "NotFound", "the server could not find the resource")),
                status=404,
            )

    # --- discovery ----------------------------------------------------------------------

    async def _version(self, request: web.Request) -> web.Response:
        return web.json_response({"major": "1", "minor": "36", "gitVersion": "v1.36.1"})

    async def _versions(self, request: web.Request) -> web.Response:
        return web.json_response({"kind": "APIVersions", "versions": ["v1"]})

    async def _groups(self, request: web.Request) -> web.Response:
        groups = []
        for path in self._groups_there:
            name, version = path.split("/")
            found = {"groupVersion": path, "version": version}
            groups.append({"name": name, "versions": [found], "preferredVersion": found})
        return web.json_response({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})

    async def _resources(self, request: web.Request) -> web.Response:
        group = request.path.removeprefix("/apis/").removeprefix("/api/")
        verbs = "create delete deletecollection get list patch update watch".split()
        listed = [
            {
                "name": k,
                "singularName": kind.lower(),
                "namespaced": True,
                "kind": kind,
                "verbs": verbs,
            }
            for k, (version, kind) in KINDS.items()
            if version == group
        ]
        body = {"kind": "APIResourceList", "groupVersion": group, "resources": listed}
        return web.json_response(body)

    async def _review_access(self, request: web.Request) -> web.Response:
        """What RBAC would say to a request that is not made."""
        review = await body_of(request)
        asked = review["spec"]["resourceAttributes"]
        resource = "/".join(filter(None, (asked["resource"], asked.get("subresource"))))
        meant = Request(asked["verb"], resource, asked["group"], asked["namespace"])
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        status = {"allowed": self._faults.allows(token, meant)}
        return web.json_response({**review, "status": status}, status=201)

    # --- verbs --------------------------------------------------------------------------

    async def _collection(self, request: web.Request) -> web.StreamResponse:
        kind, namespace = kind_of(request), request.match_info.get("namespace", "")
        if request.method == "POST":
            return web.json_response(self._create(kind, namespace, await body_of(request), request))
        if request.method != "GET":
            raise RefusedError(405, "MethodNotAllowed", "the server does not allow this method")
        if request.query.get("watch") in ("true", "1", "True"):
            return await self._streams.watch(request, kind, namespace)
        selected = selector(request)
        version, kind_name = KINDS[kind]
        items = [obj for obj in self._store.list(kind, namespace) if selected(obj)]
        metadata = {"resourceVersion": str(self._store.revision)}
        body = {"kind": f"{kind_name}List", "apiVersion": version, "metadata": metadata}
        return web.json_response({**body, "items": items})

    def _create(self, kind: str, namespace: str, given: Object, request: web.Request) -> Object:
        self._faults.check_namespace(namespace)
        admission.check_fields(kind, given, strict=self._is_strict(request))
        admission.check_create(kind, given)
        metadata = given["metadata"]
        if not metadata.get("name"):
            metadata["name"] = metadata["generateName"] + generated_suffix()
        name = metadata["name"]
        self._rules.check(self._store, kind, namespace, given)
        if self._store.get(kind, namespace, name) is not None:
            details = details_of(kind, name)
            words = f'{qualified(kind)} "{name}" already exists'
            raise RefusedError(409, "AlreadyExists", words, details)
        if kind == "jobs":
            complete_job(given)
        if request.query.get("dryRun") == "All":
            return given
        return self._store.create(kind, namespace, given)

    async def _object(self, request: web.Request) -> web.Response:
        kind, namespace, name = kind_of(request), request.match_info["namespace"], name_of(request)
        found = self._store.get(kind, namespace, name)
        if request.method == "PATCH" and "apply-patch" in request.content_type:
            return web.json_response(self._apply(kind, found, await body_of(request), request))
        if found is None:
            raise missing(kind, name)
        if request.method == "DELETE":
            return web.json_response(self._delete(kind, found, await body_of(request), request))
        if request.method in ("PATCH", "PUT"):
            return web.json_response(self._change(kind, found, await body_of(request), request))
        return web.json_response(found)

    def _delete(self, kind: str, found: Object, options: Object, request: web.Request) -> Object:
        metadata = found["metadata"]
        for field, wanted in options.get("preconditions", {}).items():
            if metadata.get(field) != wanted:
                raise unmet_precondition(kind, metadata, field, wanted)
        query = request.query
        policy = options.get("propagationPolicy") or query.get("propagationPolicy") or BACKGROUND
        grace = options.get("gracePeriodSeconds", query.get("gracePeriodSeconds"))
        found = delete(self._store, kind, found, policy, None if grace is None else int(grace))
        if kind == "pods" or "deletionTimestamp" in found["metadata"]:
            return found
        details = {**details_of(kind, metadata["name"]), "uid": metadata["uid"]}
        success = {"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Success"}
        return {**success, "details": details}

    def _change(self, kind: str, found: Object, given: Object, request: web.Request) -> Object:
        metadata = given.get("metadata", {})
        wanted = metadata.get("resourceVersion")
        if wanted and wanted != found["metadata"]["resourceVersion"]:
            words = "the object has been modified; please apply your changes to the latest version"
            raise conflict(kind, found["metadata"]["name"], words + " and try again")
        merge = "merge-patch" in request.content_type
        if request.method == "PATCH" and not merge:
            raise RefusedError(415, "UnsupportedMediaType", f"unsupported: {request.content_type}")
        changed = merged(found, given) if merge else {**given, "status": found.get("status", {})}
        admission.check_fields(kind, changed, strict=self._is_strict(request))
        admission.check_update(kind, found, changed)
        return self._store.update(kind, changed)

    def _apply(
        self, kind: str, found: Object | None, given: Object, request: web.Request
    ) -> Object:
        """Server-side apply: what the manager had applied and leaves out now, goes."""
        namespace, name = request.match_info["namespace"], name_of(request)
        admission.check_fields(kind, given, strict=self._is_strict(request))
        key = (kind, namespace, name, request.query["fieldManager"])
        before, self._applied[key] = self._applied.get(key, {}), copy.deepcopy(given)
        if found is None:
            group = KINDS[kind][0].rpartition("/")[0]
            self._faults.also(Request("create", kind, group, namespace, name), request)
            return self._create(kind, namespace, given, request)
        changed = merged(merged(found, without(before, given)), given)
        if changed["spec"] != found["spec"]:
            changed["metadata"]["generation"] = found["metadata"].get("generation", 0) + 1
        return self._store.update(kind, changed)

    def _is_strict(self, request: web.Request) -> bool:
        return self._strict or request.query.get("fieldValidation") == "Strict"
