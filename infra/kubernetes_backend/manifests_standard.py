"""InferenceServices without Knative: KServe's Standard mode, with KServe's own canary.

    standard_predictor(spec, settings, part)    the servers of one revision
    standard_service(spec, settings, stable)    the InferenceService; a canary gets no traffic

A revision's servers are the Deployment `{service}-{part}-predictor`, where `part` is one of two
letters. A canary becomes the stable predictor under its letter, so its pods run on.
What differs between the two is in the predictors: annotations of the service itself are copied
to all pods, and a change would restart them.
Source: KServe 0.20, pkg/apis/serving/v1beta1/inference_service.go (CanarySpec) and
pkg/controller/v1beta1/inferenceservice/components/predictor.go.
"""

from typing import Any

from infra.kubernetes_backend.manifests_pod import maintenance_labels
from infra.kubernetes_backend.manifests_serving import (
    LEAVING_SECONDS,
    REQUEST_SECONDS,
    REVISION_LABEL,
    SERVING_ANNOTATION,
    STOP_SECONDS,
    kserve_container,
    labels_of,
    namespace_of,
    placement,
    scratch,
)
from infra.serving_place import PORT, ServingSpec
from trainer.contract.cluster_settings import ClusterSettings

Object = dict[str, Any]
PARTS = ("a", "b")


def deployment_name(service: str, part: str) -> str:
    """The Deployment and Service that KServe makes for a predictor of that name."""
    return f"{service}-{part}-predictor" if part else f"{service}-predictor"


def standard_predictor(
    spec: ServingSpec, settings: ClusterSettings, part: str, *, canary: bool
) -> Object:
    """The predictor of one revision; a canary has one server and no autoscaling."""
    container = kserve_container(spec, settings)
    container["env"].append({"name": "PORT", "value": str(PORT)})
    # A pod is asked to stop while it is still being taken from its Service.
    container["lifecycle"] = {"preStop": {"exec": {"command": ["sleep", f"{LEAVING_SECONDS}"]}}}
    least = max(1, spec.min_replicas)  # there is no scaling to zero in this mode
    scaling = {"minReplicas": least, "maxReplicas": max(least, spec.max_replicas)}
    return {
        "name": part,
        "labels": {REVISION_LABEL: str(spec.revision), **maintenance_labels(settings)},
        "annotations": {SERVING_ANNOTATION: spec.to_json()},
        "timeout": REQUEST_SECONDS,
        **({"minReplicas": 1} if canary else scaling),
        "terminationGracePeriodSeconds": STOP_SECONDS,
        "containers": [container],
        "volumes": [scratch(settings)],
        **placement(spec, settings),
    }


def standard_service(
    spec: ServingSpec, settings: ClusterSettings, stable: Object, canary: Object | None = None
) -> Object:
    """The InferenceService whose clients are sent to `stable`, with `canary` beside it."""
    tried = [{"predictor": canary, "trafficPercent": 0}] if canary else []
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": spec.name,
            **namespace_of(settings),
            "labels": labels_of(spec),
            "annotations": {"serving.kserve.io/deploymentMode": "Standard"},
        },
        "spec": {"predictor": stable, **({"canary": tried} if tried else {})},
    }
