"""KServe's Standard mode: Deployments and Services of an InferenceService, and its canary.

Source: KServe 0.20, pkg/controller/v1beta1/inferenceservice/components/predictor.go and
pkg/apis/serving/v1beta1/inference_service_validation.go.
"""

import copy
from collections.abc import Iterator
from typing import Any

from tests.kubernetes_double.deletion import delete
from tests.kubernetes_double.store import Object, Store

MODE = "serving.kserve.io/deploymentMode"
LONGEST_LABEL = 63
OF_PREDICTOR = ("name", "labels", "annotations", "minReplicas", "maxReplicas", "timeout")


def is_standard(service: Object) -> bool:
    return service["metadata"].get("annotations", {}).get(MODE) == "Standard"


def canary_problems(given: Object) -> list[str]:
    """What KServe's webhook refuses about `spec.canary`."""
    spec = given.get("spec", {})
    stable, canaries = spec.get("predictor", {}), spec.get("canary") or []
    if not canaries:
        return []
    if not is_standard(given):
        return ["canary is only supported in Standard deployment mode"]
    found = []
    names = [stable.get("name"), *(canary["predictor"].get("name") for canary in canaries)]
    if not all(names[1:]) or len(set(names)) < len(names):
        found.append(f"canary predictor.name is missing or taken (got {names})")
    for canary in canaries:
        predictor = canary["predictor"]
        if "maxReplicas" in predictor:
            found.append("canary must not set maxReplicas (canary uses fixed replicas)")
        if predictor.get("minReplicas", 0) > stable.get("minReplicas", 1):
            found.append("canary minReplicas must not exceed stable predictor minReplicas")
    return found


class StandardMode:
    """Brings the objects of InferenceServices in Standard mode to what their specs say."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def reconcile(self, service: Object, with_model: Any) -> tuple[str, Object]:
        """Make, change and delete its Deployments and Services.

        Args:
            with_model: What KServe's webhook does to a pod's spec.
        Returns:
            The stable predictor's Deployment's name, and the service's status without its URL.
        """
        spec, statuses = service["spec"], []
        stable_name = self._predictor(service, spec["predictor"], with_model)
        expected = {stable_name}
        for canary in spec.get("canary") or []:
            predictor = {**spec["predictor"], **canary["predictor"]}
            name = self._predictor(service, predictor, with_model)
            expected.add(name)
            statuses.append(
                {
                    "name": predictor["name"],
                    "ready": self._is_available(service, name),
                    "trafficPercent": canary["trafficPercent"],
                }
            )
        for kind, found in self._owned(service):
            if found["metadata"]["name"] not in expected:
                delete(self._store, kind, found, "Background", None)
        return stable_name, self._status(service, stable_name, statuses)

    def _predictor(self, service: Object, predictor: Object, with_model: Any) -> str:
        metadata = service["metadata"]
        name = "-".join(filter(None, (metadata["name"], predictor.get("name"), "predictor")))
        app = f"isvc.{name}"
        assert len(app) <= LONGEST_LABEL, f"a Deployment with the label {app} is refused"
        labels = {"app": app, "serving.kserve.io/inferenceservice": metadata["name"]}
        labels |= {"component": "predictor", **predictor.get("labels", {})}
        pod = {key: value for key, value in predictor.items() if key not in OF_PREDICTOR}
        annotations = {**metadata["annotations"], **predictor.get("annotations", {})}
        template = {
            "metadata": {"labels": labels, "annotations": annotations},
            "spec": with_model(pod),
        }
        deployment = {"selector": {"matchLabels": {"app": app}}, "template": template}
        self._make("deployments", service, name, {**deployment, "replicas": 1})
        ports = [{"port": 80, "targetPort": 8080}]
        self._make("services", service, name, {"selector": {"app": app}, "ports": ports})
        return name

    def _make(self, kind: str, service: Object, name: str, spec: Object) -> None:
        namespace = service["metadata"]["namespace"]
        found = self._store.get(kind, namespace, name)
        if found is not None and found["spec"] != spec:
            # In place of a rolling update: what it has is replaced at once.
            delete(self._store, kind, found, "Background", None)
            found = None
        if found is None:
            owner = {key: service["metadata"][key] for key in ("name", "uid")}
            owner |= {"apiVersion": service["apiVersion"], "kind": service["kind"]}
            metadata = {"name": name, "ownerReferences": [owner]}
            self._store.create(kind, namespace, {"metadata": metadata, "spec": copy.deepcopy(spec)})

    def _owned(self, service: Object) -> Iterator[tuple[str, Object]]:
        owned = list(self._store.owned(service))
        return ((kind, found) for kind, found in owned if kind in ("deployments", "services"))

    def _is_available(self, service: Object, name: str) -> bool:
        found = self._store.get("deployments", service["metadata"]["namespace"], name)
        return bool(found and found.get("status", {}).get("availableReplicas"))

    def _status(self, service: Object, name: str, canaries: list[Object]) -> Object:
        """As KServe has it: `observedGeneration` is the Deployment's, not the service's."""
        found = self._store.get("deployments", service["metadata"]["namespace"], name) or {}
        ready = self._is_available(service, name)
        condition = {"status": "True" if ready else "False"}
        if not ready:
            condition |= {"reason": "MinimumReplicasUnavailable", "message": "no server is ready"}
        kinds = ("IngressReady", "PredictorReady", "Ready")
        status: Object = {
            "observedGeneration": found.get("status", {}).get("observedGeneration", 0),
            "conditions": [{"type": kind, **condition} for kind in kinds],
            "deploymentMode": "Standard",
        }
        return status | ({"canaryStatuses": canaries} if canaries else {})
