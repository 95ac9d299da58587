"""Services as KServe's InferenceServices: a new revision is tried at 0 % of the traffic.

Source: https://kserve.github.io/website/docs/model-serving/predictive-inference/rollout-strategies/canary-example
"""

import dataclasses

from infra import manifests_serving
from infra.kubernetes_backend.connection import Connection
from infra.kubernetes_backend.contact import Object
from infra.kubernetes_backend.looks import Look
from infra.manifests_settings import ClusterSettings
from infra.serving import ServingSpec

GROUP = "/apis/serving.kserve.io/v1beta1"
PATH = GROUP + "/namespaces/{namespace}/inferenceservices"
RESOURCE = "inferenceservices.serving.kserve.io"
HOPELESS = ("BlockedByFailedLoad", "InvalidSpec")  # of status.modelStatus.transitionStatus


class InferenceServices:
    """See `serving.Kind`."""

    def __init__(self, connection: Connection, settings: ClusterSettings) -> None:
        self._connection, self._settings = connection, settings

    @staticmethod
    async def known_to(connection: Connection) -> bool:
        """Whether the cluster has the kind."""
        return await connection.read("the API's groups", GROUP) is not None

    def pods_of(self, spec: ServingSpec) -> str:
        return f"serving.kserve.io/inferenceservice={spec.name}"

    async def apply(self, spec: ServingSpec, *, trial: bool) -> None:
        made = manifests_serving.inference_service(spec, self._settings, trial=trial)
        await self._connection.apply(RESOURCE, PATH, made, manifests_serving.FIELD_MANAGER)

    async def look(self, spec: ServingSpec, *, trial: bool) -> Look:
        found = await self._connection.read(RESOURCE, f"{PATH}/{spec.name}")
        predictor = (found or {}).get("status", {}).get("components", {}).get("predictor", {})
        revision = predictor.get("latestCreatedRevision", "")
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
        text = (found or {}).get("metadata", {}).get("annotations", {})
        spec = text.get(manifests_serving.SERVING_ANNOTATION)
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
    status = found.get("status", {})
    if status.get("observedGeneration", 0) < found["metadata"].get("generation", 0):
        return Look(why="KServe has not seen it yet")
    model = status.get("modelStatus", {})
    if model.get("transitionStatus") in HOPELESS:
        failure = model.get("lastFailureInfo", {})
        words = [failure.get("reason", model["transitionStatus"]), failure.get("message", "")]
        return Look(why=": ".join(word for word in words if word), hopeless=True)
    conditions = {c["type"]: c for c in status.get("conditions", [])}
    predictor = status.get("components", {}).get("predictor", {})
    newest = predictor.get("latestCreatedRevision")
    ready = conditions.get("Ready", {}).get("status") == "True"
    if not (ready and newest and newest == predictor.get("latestReadyRevision")):
        return Look(why=_why_not(list(conditions.values())))
    if not trial:
        return Look(url=status.get("url", ""))
    tagged = [t.get("url", "") for t in predictor.get("traffic", []) if t.get("tag") == "latest"]
    return Look(url=tagged[0]) if tagged else Look(why="its revision has no address of its own yet")


def _why_not(conditions: list[Object]) -> str:
    """Reason and message of the conditions that are not met, the summary `Ready` last."""
    missing = [c for c in conditions if c["status"] != "True"]
    for found in sorted(missing, key=lambda c: c["type"] == "Ready"):
        words = [found.get("reason", ""), found.get("message", "")]
        if any(words):
            return f"{found['type']}: " + ": ".join(word for word in words if word)
    return "KServe has said nothing yet"
