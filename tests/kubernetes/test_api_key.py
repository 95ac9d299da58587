"""The endpoint's API key on a cluster: one entry of a Secret, and its name everywhere else."""

import json

from infra.kubernetes_backend import manifests_serving
from infra.serving_place import ServingSpec, server_config
from trainer.contract.cluster_settings import ClusterSettings

WITHOUT = ServingSpec(
    run_name="x", volume="v", model="x/final", model_digest="", revision=1, image="i"
)
WITH = ServingSpec.from_json(json.dumps({**json.loads(WITHOUT.to_json()), "api_key": "our-key"}))


def test_both_kinds_of_server_get_the_key_of_the_secret() -> None:
    service = manifests_serving.inference_service(WITH, ClusterSettings())
    plain = manifests_serving.deployment(WITH, ClusterSettings())
    for pod in (service["spec"]["predictor"], plain["spec"]["template"]["spec"]):
        (given,) = [e for e in pod["containers"][0]["env"] if e["name"] == "FINETUNE_API_KEY"]
        assert given["valueFrom"] == {
            "secretKeyRef": {"name": "our-key", "key": "FINETUNE_API_KEY"}
        }
    assert json.loads(server_config(WITH))["api_key_variable"] == "FINETUNE_API_KEY"


def test_a_service_without_a_key_is_the_one_that_earlier_versions_made() -> None:
    assert "api_key" not in WITHOUT.to_json() + server_config(WITHOUT)
    assert ServingSpec.from_json(WITHOUT.to_json()) == WITHOUT
    assert not WITH.serves_as(WITHOUT)
