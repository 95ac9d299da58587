"""What a server says of services and groups: with fields missing, or while it is away."""

import json
from typing import Any

import pytest

from infra.kubernetes_backend import diagnosis
from infra.kubernetes_backend.answers import answer_of
from infra.kubernetes_backend.inference_services import RESOURCE, look_at
from infra.kubernetes_backend.jobs import KubernetesBackend
from infra.kubernetes_backend.plain_services import why_not_ready
from infra.kubernetes_backend.refusals import RefusedError
from infra.kubernetes_backend.serving import why_given_up
from infra.kubernetes_backend.standard_services import _address_of, _predictors, _serves
from tests.kubernetes.conftest import spec
from tests.kubernetes.test_serving_manifests import READY, SPEC
from tests.kubernetes.test_unexpected_answers import damaged
from tests.kubernetes_double.cluster import Cluster

FAILURE = {"reason": "ModelLoadFailed", "message": "no", "exitCode": 78}
ENDED = {"exitCode": 70, "message": '{"message": "no torch"}', "reason": "Error"}
CONDITION = {"type": "Progressing", "status": "False", "reason": "Late", "message": "m"}
PREDICTOR = {"name": "a", "annotations": {"x": "y"}}
SERVICES: list[dict[str, Any]] = [
    {
        "kind": "InferenceService",
        "metadata": {"generation": 2, "name": "inference-tales"},
        "spec": {"predictor": PREDICTOR, "canary": [{"predictor": PREDICTOR}]},
        "status": {**READY, "observedGeneration": 2, **more},
    }
    for more in (
        {},
        {"canaryStatuses": [{}]},
        {"modelStatus": {"transitionStatus": "BlockedByFailedLoad", "lastFailureInfo": FAILURE}},
    )
]
DEPLOYMENT: dict[str, Any] = {
    "kind": "Deployment",
    "metadata": {"generation": 1},
    "spec": {"replicas": 1, "template": {"metadata": {"annotations": {}}}},
    "status": {"observedGeneration": 1, "updatedReplicas": 1, "conditions": [CONDITION]},
}
POD: dict[str, Any] = {
    "metadata": {"name": "p", "uid": "u", "creationTimestamp": "t"},
    "spec": {},
    "status": {
        "containerStatuses": [
            {"restartCount": 3, "state": {"waiting": {}}, "lastState": {"terminated": ENDED}}
        ]
    },
}


def explain_service(found: dict[str, Any]) -> None:
    for trial in (True, False):
        look_at(found, trial=trial)
    _address_of(found)
    for predictor in _predictors(found):
        _serves(predictor, SPEC)


@pytest.mark.parametrize(
    ("action", "whole", "explain"),
    [
        *((f"get {RESOURCE}", service, explain_service) for service in SERVICES),
        ("get deployments.apps", DEPLOYMENT, why_not_ready),
        ("get pods", {"kind": "Pod", **POD}, lambda pod: why_given_up([pod], "image")),
    ],
)
def test_a_service_without_one_of_its_fields_is_explained_all_the_same(
    action: str, whole: dict[str, Any], explain: Any
) -> None:
    num_explained = 0
    for body in damaged(whole):
        try:
            found = answer_of(action, 200, json.dumps(body).encode())
        except RefusedError:
            continue
        explain(found)
        num_explained += 1
    assert num_explained > 40


def test_another_kind_than_was_asked_for_is_no_answer() -> None:
    body = json.dumps({"kind": "Pod", **POD}).encode()
    assert answer_of("get pods", 200, body)
    for asked in ("services", "deployments.apps", RESOURCE, "the API's groups"):
        with pytest.raises(RefusedError, match="Pod instead of "):
            answer_of(f"get {asked}", 200, body)


def test_a_server_whose_image_lacks_a_package_is_given_up_with_the_images_name() -> None:
    waits = {"restartCount": 1, "lastState": {"terminated": ENDED}}
    pod = {"status": {"containerStatuses": [waits]}}
    assert why_given_up([pod], "finetune-steps:0.2.0") == "no torch Image: finetune-steps:0.2.0."


def test_while_the_api_is_away_a_cluster_is_not_taken_for_one_without_kserve(
    backend: KubernetesBackend, cluster: Cluster
) -> None:
    backend.running_steps("", "run")
    cluster.faults.refuse(404, "", "404 page not found", verb="get", times=2)
    assert backend.serving("").serving(SPEC) is None
    asked = [request.resource for request in cluster.faults.seen if request.resource]
    assert asked[-1] == "inferenceservices"


def test_a_patch_that_crosses_another_is_made_again(
    backend: KubernetesBackend, cluster: Cluster
) -> None:
    words = "the object has been modified; please apply your changes to the latest version"
    backend.submit(spec(until="never"))
    cluster.faults.refuse(409, "Conflict", words, verb="patch", times=2)
    assert "already running" in backend.submit(spec(until="never"))
    backend.stop("", "run")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            "Unschedulable: 0/9 nodes are available: 1 Insufficient nvidia.com/gpu, 8 node(s) "
            "didn't match. preemption: 0/9 nodes are available: 9 Preemption is not helpful.",
            "Unschedulable: 0/12 nodes are available: 4 Insufficient nvidia.com/gpu, 8 node(s) "
            "didn't match. preemption: 0/12 nodes are available: 12 Preemption is not helpful.",
        ),
        (
            "CrashLoopBackOff: back-off 10s restarting failed container=server pod=p",
            "CrashLoopBackOff: back-off 1m20s restarting failed container=server pod=p",
        ),
    ],
)
def test_a_reason_is_the_same_whatever_its_numbers(one: str, other: str) -> None:
    assert diagnosis.without_names(one) == diagnosis.without_names(other)
    lacking = one.replace("Insufficient nvidia.com/gpu", "Insufficient cpu")
    assert (lacking == one) or diagnosis.without_names(lacking) != diagnosis.without_names(one)


def test_a_follower_whose_mark_was_edited_is_forgotten(
    backend: KubernetesBackend, cluster: Cluster
) -> None:
    step = spec(until="never")
    backend.submit(step)
    [job] = cluster.jobs()
    job["metadata"]["annotations"]["finetune-pipeline/follower-other"] = "yesterday"
    cluster.do(lambda: cluster.store.update("jobs", job))
    backend.cancel(step)
    assert cluster.jobs() == []
