"""Services as KServe's InferenceServices where there is no Knative: a canary without traffic.

A new revision is the canary of the one that serves, until it has passed. Its own address is
that of its Service in the cluster; clients are sent to it when it becomes the predictor.
Source: see infra/kubernetes_backend/manifests_standard.py.
"""

from infra.backend import PlaceError
from infra.kubernetes_backend import manifests_standard as standard
from infra.kubernetes_backend.connection import Connection
from infra.kubernetes_backend.contact import Object
from infra.kubernetes_backend.fields import conditions, dicts_of, part_of, text_of
from infra.kubernetes_backend.inference_services import PATH, RESOURCE, is_ready, why_not
from infra.kubernetes_backend.looks import Look
from infra.kubernetes_backend.manifests_serving import (
    FIELD_MANAGER,
    REVISION_LABEL,
    SERVING_ANNOTATION,
)
from infra.kubernetes_backend.plain_services import DEPLOYMENTS, why_not_ready
from infra.serving_place import PORT, ServingSpec
from trainer.contract.cluster_settings import ClusterSettings

KNATIVE = "serving.knative.dev/v1"


class StandardServices:
    """See `serving.Kind`."""

    def __init__(self, connection: Connection, settings: ClusterSettings) -> None:
        self._connection, self._settings = connection, settings

    @staticmethod
    async def needed_by(connection: Connection) -> bool:
        """Whether the cluster has no Knative."""
        return KNATIVE not in await connection.group_versions()

    def pods_of(self, spec: ServingSpec) -> str:
        revision = f"{REVISION_LABEL}={spec.revision}"
        return f"serving.kserve.io/inferenceservice={spec.name},{revision}"

    async def apply(self, spec: ServingSpec, *, trial: bool) -> None:
        live = await self._live(spec.name)
        stable = part_of(live, "spec", "predictor") or None
        if stable is not None and _serves(stable, spec):
            await self._apply(spec, stable)  # a deploy that was killed had promoted it
        elif trial and stable is not None:
            canary = self._predictor(spec, _other_part(stable), canary=True)
            await self._apply(spec, stable, canary)
        else:
            part = _other_part(stable) if stable else standard.PARTS[0]
            await self._apply(spec, self._predictor(spec, part))

    async def look(self, spec: ServingSpec, *, trial: bool) -> Look:
        live = await self._live(spec.name)
        if live is None:
            return Look(why="it was deleted", hopeless=True)
        part = next((text_of(p.get("name")) for p in _predictors(live) if _serves(p, spec)), None)
        if part is None:
            return Look(why="its InferenceService was changed by somebody else", hopeless=True)
        name = standard.deployment_name(spec.name, part)
        found = await self._connection.read("deployments.apps", f"{DEPLOYMENTS}/{name}")
        if not _serves(part_of(found, "spec", "template", "metadata"), spec):
            return Look(why=why_not(conditions(live)))
        why, hopeless = why_not_ready(found)
        status = part_of(found, "status")
        if not why and status.get("replicas", 0) != status.get("updatedReplicas", 0):
            why = "servers of an earlier revision have not ended yet"
        if why:
            return Look(why=why, hopeless=hopeless)
        return await self._own_address(name) if trial else _address_of(live)

    async def promote(self, spec: ServingSpec) -> str:
        live = await self._live(spec.name)
        found = [p for p in _predictors(live) if _serves(p, spec)] if live else []
        if not found:
            await self.apply(spec, trial=False)
            return ""
        # Under its own letter: the pods that passed the gate run on.
        await self._apply(spec, self._predictor(spec, text_of(found[0].get("name"))))
        return ""  # its address is there when clients are sent to it

    async def withdraw(self, spec: ServingSpec, before: ServingSpec | None) -> None:
        if before is None:
            await self.remove(spec.run_name)
            return
        live = await self._live(spec.name)
        stable = part_of(live, "spec", "predictor")
        if stable and not _serves(stable, spec):
            await self._apply(before, stable)
        else:
            await self.apply(before, trial=False)

    async def serving(self, name: str) -> ServingSpec | None:
        live = await self._live(name)
        text = _annotation(part_of(live, "spec", "predictor"))
        return ServingSpec.from_json(text) if text else None

    async def remove(self, run_name: str) -> bool:
        return await self._connection.delete(RESOURCE, f"{PATH}/{ServingSpec.name_of(run_name)}")

    # --- details ------------------------------------------------------------------------

    def _predictor(self, spec: ServingSpec, part: str, *, canary: bool = False) -> Object:
        return standard.standard_predictor(spec, self._settings, part, canary=canary)

    async def _live(self, name: str) -> Object | None:
        return await self._connection.read(RESOURCE, f"{PATH}/{name}")

    async def _apply(self, spec: ServingSpec, stable: Object, canary: Object | None = None) -> None:
        made = standard.standard_service(spec, self._settings, stable, canary)
        try:
            await self._connection.apply(RESOURCE, PATH, made, FIELD_MANAGER)
        except PlaceError as error:
            if canary and "spec.canary" in str(error):
                raise PlaceError(
                    f"KServe here cannot try a revision beside another without Knative ({error}). "
                    "KServe 0.20 and later can. Update it, or set serving.kind=deployment."
                ) from error
            raise

    async def _own_address(self, name: str) -> Look:
        service = await self._connection.read_service(name)
        if service is None:
            return Look(why="KServe has not made its Service yet")
        # A headless Service leads to the pods themselves.
        port = f":{PORT}" if part_of(service, "spec").get("clusterIP") == "None" else ""
        return Look(url=f"http://{name}.{self._connection.namespace}.svc{port}")


def _predictors(live: Object) -> list[Object]:
    spec = part_of(live, "spec")
    canaries = [part_of(canary, "predictor") for canary in dicts_of(spec.get("canary"))]
    return [part_of(spec, "predictor"), *canaries]


def _annotation(predictor: Object) -> str:
    return text_of(part_of(predictor, "annotations").get(SERVING_ANNOTATION))


def _serves(holder: Object, spec: ServingSpec) -> bool:
    """Whether a predictor, or a pod's metadata, is of that revision and none else."""
    return _annotation(holder) == spec.to_json()


def _other_part(stable: Object) -> str:
    return next(part for part in standard.PARTS if part != stable.get("name"))


def _address_of(live: Object) -> Look:
    """The service's address, once clients are sent to the predictor and to no canary."""
    status = part_of(live, "status")
    url = text_of(status.get("url"))
    if not is_ready(live) or not url:
        return Look(why=why_not(conditions(live)))
    if status.get("canaryStatuses"):
        return Look(why="KServe has not sent its clients to it yet")
    return Look(url=url)
