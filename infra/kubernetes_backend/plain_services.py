"""Services without KServe: a Deployment for each revision, a Service that points at one.

The Service `inference-{run}` is what clients use; beside it a new revision has one of its
own, `inference-{run}-{revision}`, by which it is tried.
"""

from infra.kubernetes_backend import manifests_serving
from infra.kubernetes_backend.connection import Connection
from infra.kubernetes_backend.contact import Object
from infra.kubernetes_backend.fields import conditions, part_of, whole_of, words_of
from infra.kubernetes_backend.inference_services import is_seen
from infra.kubernetes_backend.looks import Look
from infra.kubernetes_backend.manifests_serving import (
    FIELD_MANAGER,
    REVISION_LABEL,
    SERVING_ANNOTATION,
)
from infra.serving_place import ServingSpec
from trainer.contract.cluster_settings import ClusterSettings

DEPLOYMENTS = "/apis/apps/v1/namespaces/{namespace}/deployments"
SERVICES = "/api/v1/namespaces/{namespace}/services"


class PlainServices:
    """See `serving.Kind`."""

    def __init__(self, connection: Connection, settings: ClusterSettings) -> None:
        self._connection, self._settings = connection, settings

    def pods_of(self, spec: ServingSpec) -> str:
        return f"{_of_run(spec.run_name)},{REVISION_LABEL}={spec.revision}"

    async def apply(self, spec: ServingSpec, *, trial: bool) -> None:
        made = manifests_serving.deployment(spec, self._settings)
        await self._connection.apply("deployments.apps", DEPLOYMENTS, made, FIELD_MANAGER)
        await self._point(manifests_serving.revision_name(spec), spec)

    async def look(self, spec: ServingSpec, *, trial: bool) -> Look:
        name = manifests_serving.revision_name(spec)
        found = await self._connection.read("deployments.apps", f"{DEPLOYMENTS}/{name}")
        why, hopeless = why_not_ready(found)
        return Look(why=why, hopeless=hopeless) if why else Look(url=self._url(name))

    async def promote(self, spec: ServingSpec) -> str:
        await self._point(spec.name, spec)
        trial = manifests_serving.revision_name(spec)
        await self._connection.delete("services", f"{SERVICES}/{trial}")
        # Not `before` alone: a deploy that was killed may have left others.
        for left in await self._revisions(spec.run_name):
            if left != trial:
                await self._drop(left)
        return self._url(spec.name)

    async def withdraw(self, spec: ServingSpec, before: ServingSpec | None) -> None:
        await self._drop(manifests_serving.revision_name(spec))

    async def serving(self, name: str) -> ServingSpec | None:
        found = await self._connection.read("services", f"{SERVICES}/{name}")
        text = part_of(found, "metadata", "annotations").get(SERVING_ANNOTATION)
        return ServingSpec.from_json(text) if text else None

    async def remove(self, run_name: str) -> bool:
        name = ServingSpec.name_of(run_name)
        served = await self.serving(name) is not None
        if served:
            await self._connection.delete("services", f"{SERVICES}/{name}")
        revisions = await self._revisions(run_name)
        for revision in revisions:
            await self._drop(revision)
        return served or bool(revisions)

    async def _revisions(self, run_name: str) -> list[str]:
        """Names of the run's Deployments, one for each revision that is there."""
        selector = f"{_of_run(run_name)},{REVISION_LABEL}"
        found = await self._connection.select("deployments.apps", DEPLOYMENTS, selector)
        return [deployment["metadata"]["name"] for deployment in found]

    async def _point(self, name: str, spec: ServingSpec) -> None:
        made = manifests_serving.service(spec, self._settings, name)
        await self._connection.apply("services", SERVICES, made, FIELD_MANAGER)

    async def _drop(self, name: str) -> None:
        """Remove what belongs to one revision, its Deployment last: by that it is found."""
        await self._connection.delete("services", f"{SERVICES}/{name}")
        await self._connection.delete("deployments.apps", f"{DEPLOYMENTS}/{name}")

    def _url(self, name: str) -> str:
        return f"http://{name}.{self._connection.namespace}.svc"


def _of_run(run_name: str) -> str:
    return f"app.kubernetes.io/component=serve,app.kubernetes.io/instance={run_name}"


def why_not_ready(found: Object | None) -> tuple[str, bool]:
    """Why a Deployment's pods can't be asked yet, if so, and whether that is for good."""
    if found is None:
        return "it was deleted", True
    status = part_of(found, "status")
    wanted = whole_of(part_of(found, "spec").get("replicas"), 1)
    if not is_seen(found):
        return "its Deployment has not been seen yet", False
    for condition in conditions(found):
        if condition["type"] == "Progressing" and condition.get("status") == "False":
            return words_of(condition.get("reason"), condition.get("message")), True
    counts = (status.get("updatedReplicas"), status.get("availableReplicas"))
    ready = min(whole_of(count, 0) for count in counts)
    return ("", False) if ready >= wanted else (f"{ready} of {wanted} servers are ready", False)
