"""The objects of a service: KServe's own schema, Kubernetes' schemas, Pod Security, golden YAML."""

import dataclasses
import os
from typing import Any

import kubernetes_validate
import pytest
import yaml

from infra.kubernetes_backend import manifests_serving
from infra.kubernetes_backend.inference_services import look_at
from infra.kubernetes_backend.plain_services import why_not_ready
from infra.kubernetes_backend.serving import why_given_up
from infra.serving_place import ServingSpec
from tests.kubernetes.test_manifests import EVERYTHING, GOLDEN, VERSIONS
from tests.kubernetes_double import kserve_schema
from tests.kubernetes_double.admission import violations_of_restricted
from trainer.contract.cluster_settings import ClusterSettings

SPEC = ServingSpec(
    run_name="tales",
    volume="finetune-data",
    model="tales/final",
    model_digest="ab" * 32,
    revision=2,
    image="finetune-steps:0.2.0",
    config={"trust_remote_code": False},
    figures={"loss": 0.88},
    region="US-EAST-01",
    gpu="RTX_A5000",
)
BOTH = [ClusterSettings(), EVERYTHING]


def rendered() -> str:
    made = [
        manifests_serving.inference_service(SPEC, ClusterSettings()),
        manifests_serving.deployment(SPEC, ClusterSettings()),
        manifests_serving.service(SPEC, ClusterSettings(), SPEC.name),
    ]
    return yaml.safe_dump_all(made, sort_keys=False, width=100)


def test_the_objects_are_the_golden_ones() -> None:
    """With GOLDEN=write in the environment the file is written instead."""
    path = GOLDEN / "serving.yaml"
    if os.environ.get("GOLDEN") == "write":
        path.write_text(rendered())
    assert rendered() == path.read_text()


@pytest.mark.parametrize("settings", BOTH)
@pytest.mark.parametrize("trial", [False, True])
def test_an_inference_service_suits_kserves_own_schema(
    settings: ClusterSettings, trial: bool
) -> None:
    made = manifests_serving.inference_service(SPEC, settings, trial=trial)
    assert kserve_schema.problems(made) == []
    assert violations_of_restricted(made["spec"]["predictor"]) == []
    made["spec"]["predictor"]["minReplica"] = 1
    assert "minReplica" in kserve_schema.problems(made)[0]


@pytest.mark.parametrize("settings", BOTH)
@pytest.mark.parametrize("version", VERSIONS)
def test_a_deployment_and_its_service_suit_the_published_schemas(
    settings: ClusterSettings, version: str
) -> None:
    deployment = manifests_serving.deployment(SPEC, settings)
    kubernetes_validate.validate(deployment, version, strict=True)
    service = manifests_serving.service(SPEC, settings, SPEC.name)
    kubernetes_validate.validate(service, version, strict=True)
    assert violations_of_restricted(deployment["spec"]["template"]["spec"]) == []


def test_a_trial_changes_nothing_that_makes_a_revision() -> None:
    trial, promoted = (
        manifests_serving.inference_service(SPEC, ClusterSettings(), trial=trial)
        for trial in (True, False)
    )
    assert trial["spec"]["predictor"].pop("canaryTrafficPercent") == 0
    assert trial == promoted


def test_a_server_on_the_cpu_asks_for_no_gpu() -> None:
    cpu = dataclasses.replace(SPEC, gpu="", gpus=0)
    text = yaml.safe_dump(manifests_serving.inference_service(cpu, ClusterSettings()))
    assert "nvidia" not in text
    assert "US-EAST-01" in text


def test_servers_are_the_same_whatever_their_number_and_loss() -> None:
    other = dataclasses.replace(SPEC, revision=3, figures={})
    assert SPEC.serves_as(other)
    assert not SPEC.serves_as(dataclasses.replace(SPEC, model_digest="cd" * 32))
    assert ServingSpec.from_json(SPEC.to_json()) == SPEC


# --- what the cluster says --------------------------------------------------------------


def service_saying(**status: Any) -> dict[str, Any]:
    return {"metadata": {"generation": 2}, "status": {"observedGeneration": 2, **status}}


READY = {
    "conditions": [
        {"type": "PredictorReady", "status": "True"},
        {"type": "Ready", "status": "True"},
    ],
    "url": "http://tales",
    "components": {
        "predictor": {
            "latestCreatedRevision": "tales-2",
            "latestReadyRevision": "tales-2",
            "traffic": [{"tag": "latest", "url": "http://latest-tales", "percent": 0}],
        }
    },
}


def test_a_ready_service_has_an_address_and_in_a_trial_its_revision_one_of_its_own() -> None:
    assert look_at(service_saying(**READY), trial=False).url == "http://tales"
    assert look_at(service_saying(**READY), trial=True).url == "http://latest-tales"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"observedGeneration": 1}, "KServe has not seen it yet"),
        ({"components": {"predictor": {"latestCreatedRevision": "tales-3",
                                       "latestReadyRevision": "tales-2"}}}, "nothing yet"),
        ({"conditions": [
            {"type": "Ready", "status": "False", "reason": "PredictorNotReady"},
            {"type": "PredictorReady", "status": "False", "reason": "RevisionFailed",
             "message": "no GPU"}]}, "PredictorReady: RevisionFailed: no GPU"),
    ],
)  # fmt: skip
def test_a_service_that_is_not_ready_says_why(change: dict[str, Any], words: str) -> None:
    look = look_at(service_saying(**{**READY, **change}), trial=False)
    assert (look.url, look.hopeless) == ("", False)
    assert words in look.why


def test_a_model_that_does_not_load_is_hopeless_and_so_is_what_was_deleted() -> None:
    failure = {"reason": "ModelLoadFailed", "message": "model is not the one", "exitCode": 78}
    status = {"transitionStatus": "BlockedByFailedLoad", "lastFailureInfo": failure}
    look = look_at(service_saying(**{**READY, "modelStatus": status}), trial=False)
    assert look.hopeless
    assert look.why == "ModelLoadFailed: model is not the one"
    assert look_at(None, trial=False).hopeless


def test_a_deployment_is_ready_when_its_new_servers_are() -> None:
    status = {"observedGeneration": 1, "updatedReplicas": 1, "availableReplicas": 1}
    found: dict[str, Any] = {"metadata": {"generation": 1}, "spec": {"replicas": 1}}
    assert why_not_ready({**found, "status": status}) == ("", False)
    waiting = {**status, "availableReplicas": 0}
    assert why_not_ready({**found, "status": waiting}) == ("0 of 1 servers are ready", False)
    late = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}
    words, hopeless = why_not_ready({**found, "status": {**waiting, "conditions": [late]}})
    assert hopeless and "ProgressDeadlineExceeded" in words


def test_servers_that_refuse_or_end_again_and_again_are_given_up() -> None:
    def pod(code: int, restarts: int, message: str = "") -> dict[str, Any]:
        ended = {"terminated": {"exitCode": code, "message": message, "reason": "Error"}}
        status = {"restartCount": restarts, "state": {"waiting": {}}, "lastState": ended}
        return {"status": {"containerStatuses": [status]}}

    assert why_given_up([pod(1, restarts=1)], "image") == ""
    again = why_given_up([pod(137, restarts=3)], "image")
    assert again == "its server ended 3 times, last with exit code 137"
    refused = pod(78, 0, '{"message": "model is not the one that was deployed"}')
    assert why_given_up([refused], "image") == "model is not the one that was deployed"
