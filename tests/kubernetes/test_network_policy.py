"""The policy that is off by default: valid, and about the servers' pods."""

import kubernetes_validate
import yaml

from infra.kubernetes_backend.manifests_serving import labels_of
from infra.serving_place import ServingSpec
from tests.kubernetes.shipped import FOLDER, MANIFESTS

POLICY = yaml.safe_load((FOLDER / "optional/network-policy.yaml").read_text())
SPEC = ServingSpec(
    run_name="x", volume="v", model="x/final", model_digest="", revision=1, image="i"
)


def test_the_policy_is_valid_and_not_applied_by_default() -> None:
    kubernetes_validate.validate(POLICY, "1.34", strict=True)
    assert not any(made["kind"] == "NetworkPolicy" for made in MANIFESTS)


def test_the_policy_chooses_the_servers_pods() -> None:
    chosen = POLICY["spec"]["podSelector"]["matchLabels"]
    assert chosen
    assert chosen.items() <= labels_of(SPEC).items()
