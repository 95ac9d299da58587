"""Services as KServe's InferenceServices: a new revision is tried at 0 % of the traffic.

Source: https://kserve.github.io/website/docs/model-serving/predictive-inference/rollout-strategies/canary-example
"""

import dataclasses

from infra.kubernetes_backend import manifests_serving
from infra.kubernetes_backend.connection import Connection
from infra.kubernetes_backend.contact import Object
from infra.kubernetes_backend.fields import (
    conditions,
    dicts_of,
    part_of,
    text_of,
    whole_of,
    words_of,
)
from infra.kubernetes_backend.looks import Look
from infra.serving_place import ServingSpec
from trainer.contract.cluster_settings import ClusterSettings

GROUP_VERSION = "serving.kserve.io/v1beta1"
PATH = f"/apis/{GROUP_VERSION}/namespaces/{{namespace}}/inferenceservices"
RESOURCE = "inferenceservices.serving.kserve.io"
HOPELESS = ("BlockedByFailedLoad", "InvalidSpec")  # of status.modelStatus.transitionStatus


class InferenceServices:
    """See `serving.Kind`."""

    def __init__(self, connection: Connection, settings: ClusterSettings) -> None:
        self._connection, self._settings = connection, settings

    @staticmethod
    async def known_to(connection: Connection) -> bool:
        """Whether the cluster has the kind."""
        return GROUP_VERSION in await connection.group_versions()

    def pods_of(self, spec: ServingSpec) -> str:
        return f"serving.kserve.io/inferenceservice={spec.name}"

    async def apply(self, spec: ServingSpec, *, trial: bool) -> None:
        made = manifests_serving.inference_service(spec, self._settings, trial=trial)
        await self._connection.apply(RESOURCE, PATH, made, manifests_serving.FIELD_MANAGER)

    async def look(self, spec: ServingSpec, *, trial: bool) -> Look:
        found = await self._connection.read(RESOURCE, f"{PATH}/{spec.name}")
        predictor = part_of(found, "status", "components", "predictor")
        revision = text_of(predictor.get("latestCreatedRevision"))
        return dataclasses.replace(look_at(found, trial=trial), revision=revision)

    async def promote(self, spec: ServingSpec) -> str:
        await self.apply(spec, trial=False)
        return ""  # its address is there when it is ready

    async def withdraw(self, spec: ServingSpec, before: ServingSpec | None) -> None:
        if before is None:
            await self.remove(spec.run_name)
        else:
            # Still without traffic: the newest that is ready is the one that is not to have it.
            await self.apply(before, trial=True)

    async def serving(self, name: str) -> ServingSpec | None:
        found = await self._connection.read(RESOURCE, f"{PATH}/{name}")
        annotations = part_of(found, "metadata", "annotations")
        spec = annotations.get(manifests_serving.SERVING_ANNOTATION)
        return ServingSpec.from_json(spec) if spec else None

    async def remove(self, run_name: str) -> bool:
        return await self._connection.delete(RESOURCE, f"{PATH}/{ServingSpec.name_of(run_name)}")


def look_at(found: Object | None, *, trial: bool) -> Look:
    """What the status of an InferenceService says of its newest revision.

    Args:
        trial: The revision gets no traffic; its own address is that of its tag.
    """
    if found is None:
        return Look(why="it was deleted", hopeless=True)
    status = part_of(found, "status")
    if not is_seen(found):
        return Look(why="KServe has not seen it yet")
    model = part_of(status, "modelStatus")
    if model.get("transitionStatus") in HOPELESS:
        failure = part_of(model, "lastFailureInfo")
        reason = failure.get("reason", model["transitionStatus"])
        return Look(why=words_of(reason, failure.get("message")), hopeless=True)
    predictor = part_of(status, "components", "predictor")
    newest = predictor.get("latestCreatedRevision")
    if not (is_ready(found) and newest and newest == predictor.get("latestReadyRevision")):
        return Look(why=why_not(conditions(found)))
    if not trial:
        return Look(url=text_of(status.get("url")))
    traffic = dicts_of(predictor.get("traffic"))
    tagged = [text_of(t.get("url")) for t in traffic if t.get("tag") == "latest"]
    return Look(url=tagged[0]) if tagged else Look(why="its revision has no address of its own yet")


def is_seen(found: Object) -> bool:
    """Whether the status is of what the object asks for now."""
    seen = whole_of(part_of(found, "status").get("observedGeneration"), 0)
    return seen >= whole_of(part_of(found, "metadata").get("generation"), 0)


def is_ready(found: Object) -> bool:
    return any(c["type"] == "Ready" and c.get("status") == "True" for c in conditions(found))


def why_not(conditions: list[Object]) -> str:
    """Reason and message of the conditions that are not met, the summary `Ready` last."""
    missing = [c for c in conditions if c.get("status") != "True"]
    for found in sorted(missing, key=lambda c: c["type"] == "Ready"):
        if words := words_of(found.get("reason"), found.get("message")):
            return f"{found['type']}: {words}"
    return "KServe has said nothing yet"
