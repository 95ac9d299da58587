"""The objects made for a step: golden YAML, schemas of seven versions, Pod Security."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from infra.backend import Resources
from infra.kubernetes_backend import manifests_job as manifests
from tasks.specs import step_spec
from tests.kubernetes.conftest import spec
from tests.kubernetes_double.admission import violations_of_restricted
from trainer.contract.cluster_settings import ClusterSettings
from trainer.contract.parameters import Parameters
from trainer.contract.validation import load_parameters

GOLDEN = Path(__file__).parent / "golden"
VERSIONS = [f"1.{minor}" for minor in range(31, 38)]
EVERYTHING = ClusterSettings(
    namespace="research",
    service_account="finetune-step",
    image_pull_secrets=["registry"],
    secrets=["finetune-hub", "finetune-object-store"],
    environment={"AWS_ENDPOINT_URL": "https://object.ord1.coreweave.com"},
    node_selector={"node.coreweave.cloud/reserved": "research"},
    tolerations=[{"key": "is_gpu", "operator": "Exists"}],
    priority_class="training",
    queue="gpus",
    device_resources={"rdma/ib": 1},
    backoff_limit=3,
    deadline_seconds=86400,
)
KEPT = ClusterSettings(evicted_for_maintenance=False)
INFINIBAND = {  # as CoreWeave's page on InfiniBand has them
    "NCCL_SOCKET_IFNAME": "eth0",
    "NCCL_IB_HCA": "ibp",
    "UCX_TLS": "tcp",
    "UCX_NET_DEVICES": "eth0",
}
SPECS = {
    "finetune": spec(learn_rate=5e-5, request={"context": 2048}),
    "tokenize": dataclasses.replace(
        spec(dataset="dataset"), step="tokenize", resources=Resources(light=True)
    ),
    "several-nodes": dataclasses.replace(
        spec(grace_seconds=300.0),
        attempt="8b0e0e2c-5c0a-4a6e-9e0f-2f9b4f3f3f10",
        resources=Resources(gpu="H100_NVLINK_80GB", gpus=8, cores=96, memory_gib=960, nodes=2),
    ),
}
SETTINGS = {
    "finetune": ClusterSettings(),
    "tokenize": ClusterSettings(),
    "several-nodes": EVERYTHING,
}


def pod_of(job: dict[str, Any]) -> dict[str, Any]:
    return job["spec"]["template"]["spec"]


@pytest.mark.parametrize("name", SPECS)
def test_the_objects_are_the_golden_ones(name: str) -> None:
    """With GOLDEN=write in the environment the files are written instead."""
    rendered = manifests.render([SPECS[name]], SETTINGS[name])
    path = GOLDEN / f"{name}.yaml"
    if os.environ.get("GOLDEN") == "write":
        path.write_text(rendered)
    assert rendered == path.read_text()
    assert list(yaml.safe_load_all(rendered)) == manifests.objects(SPECS[name], SETTINGS[name])


def resources_asked(step: str, settings: ClusterSettings, **given: Any) -> dict[str, Any]:
    asked = load_parameters(Parameters, {"run_name": "run", **given}).model_dump()
    made = manifests.job(step_spec(asked, step, {}), settings)
    (container,) = pod_of(made)["containers"]
    assert container["resources"]["requests"] == container["resources"]["limits"]
    return container["resources"]["requests"]


@pytest.mark.parametrize("step", ["plan", "fetch", "tokenize", "deploy"])
def test_the_clusters_settings_size_the_light_steps(step: str) -> None:
    usual = resources_asked(step, ClusterSettings())
    assert (usual["cpu"], usual["memory"]) == ("4", "8Gi")
    small = resources_asked(step, ClusterSettings(light_cores=1, light_memory_gib=2))
    assert (small["cpu"], small["memory"]) == ("1", "2Gi")
    heavy = resources_asked("finetune", ClusterSettings(light_cores=1), trainer_cores=6)
    assert heavy["cpu"] == "6"


@pytest.mark.parametrize("step", ["finetune", "evaluate"])
@pytest.mark.parametrize("gpu", ["none", "None", ""])
def test_without_a_gpu_class_no_gpu_is_requested(step: str, gpu: str) -> None:
    settings = ClusterSettings(device_resources={"rdma/ib": 1})
    asked = resources_asked(step, settings, trainer_gpu=gpu, trainer_gpus=2, trainer_ram=16)
    assert set(asked) == {"cpu", "memory", "ephemeral-storage"}
    assert asked["memory"] == "16Gi"
    assert "nvidia.com/gpu" in resources_asked(step, settings, trainer_gpu="A40")


def test_node_maintenance_may_evict_pods_unless_the_cluster_says_otherwise() -> None:
    label = "qos.coreweave.com/graceful-interruptible"
    for settings, value in ((ClusterSettings(), "true"), (KEPT, None)):
        job = manifests.job(SPECS["finetune"], settings)
        assert job["spec"]["template"]["metadata"]["labels"].get(label) == value
        assert label not in job["metadata"]["labels"]


def environment_of(settings: ClusterSettings, name: str = "several-nodes") -> dict[str, str]:
    (container,) = pod_of(manifests.job(SPECS[name], settings))["containers"]
    return {variable["name"]: variable.get("value", "") for variable in container["env"]}


def test_several_nodes_with_infiniband_get_the_vendors_variables() -> None:
    fabric = ClusterSettings(device_resources={"rdma/ib": 1})
    found = environment_of(fabric)
    assert found.items() >= INFINIBAND.items()
    for settings, name in ((fabric, "finetune"), (fabric, "tokenize"), (KEPT, "several-nodes")):
        assert not INFINIBAND.keys() & environment_of(settings, name).keys()
    own = {"NCCL_SOCKET_IFNAME": "bond0"}
    of_user = ClusterSettings(device_resources={"rdma/ib": 1}, environment=own)
    assert environment_of(of_user)["NCCL_SOCKET_IFNAME"] == "bond0"


@pytest.mark.parametrize(
    ("environment", "variable"),
    [
        ({}, "AWS_WEB_IDENTITY_TOKEN_FILE"),
        ({"AWS_ROLE_ARN": "arn:aws:iam::1:role/steps"}, "AWS_WEB_IDENTITY_TOKEN_FILE"),
        (
            {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "https://api.coreweave.com/v1/cwobject/x"},
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
        ),
    ],
)
def test_workload_identity_gives_a_token_for_object_storage_alone(
    environment: dict[str, str], variable: str
) -> None:
    settings = ClusterSettings(
        identity_audience="https://coreweave.com/iam", environment=environment
    )
    pod = pod_of(manifests.job(SPECS["tokenize"], settings))
    assert pod["automountServiceAccountToken"] is False
    (volume,) = [v for v in pod["volumes"] if "projected" in v]
    (source,) = volume["projected"]["sources"]
    assert source["serviceAccountToken"]["audience"] == "https://coreweave.com/iam"
    (container,) = pod["containers"]
    (mount,) = [m for m in container["volumeMounts"] if m["name"] == volume["name"]]
    token = f"{mount['mountPath']}/{source['serviceAccountToken']['path']}"
    found = environment_of(settings, "tokenize")
    assert {name for name in found if name.endswith("TOKEN_FILE")} == {variable}
    assert found[variable] == token
    assert violations_of_restricted(pod) == []
    kubernetes_validate.validate(
        manifests.job(SPECS["tokenize"], settings), VERSIONS[-1], strict=True
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_the_objects_suit_the_published_schemas(version: str) -> None:
    for name, step in SPECS.items():
        for made in manifests.objects(step, SETTINGS[name]):
            kubernetes_validate.validate(made, version, strict=True)


@pytest.mark.parametrize("name", SPECS)
def test_pods_pass_the_restricted_standard(name: str) -> None:
    job, *_ = manifests.objects(SPECS[name], SETTINGS[name])
    assert violations_of_restricted(pod_of(job)) == []
    assert pod_of(job)["automountServiceAccountToken"] is False


def test_a_step_without_a_gpu_asks_for_none() -> None:
    pod = pod_of(manifests.job(SPECS["tokenize"], EVERYTHING))
    text = yaml.safe_dump(pod)
    assert "nvidia.com/gpu" not in text
    assert "rdma/ib" not in text
    assert "gpu.nvidia.com/class" not in text
    assert "topology.kubernetes.io/region" in text


def test_the_name_is_made_of_the_work_alone() -> None:
    one = spec()
    two = dataclasses.replace(
        one, image="other:2", region="LAS1", attempt="2", resources=Resources(gpus=4, gpu="A100")
    )
    assert manifests.job(one, ClusterSettings())["metadata"]["name"] == "run-finetune-01234567"
    assert manifests.job(two, EVERYTHING)["metadata"]["name"] == "run-finetune-01234567"
    assert manifests.job_name("tokenize", "", "0123456789abcdef") == "tokenize-01234567"


@given(
    st.sampled_from(["fetch", "tokenize", "finetune", "evaluate"]),
    st.text(max_size=80),
    st.text("0123456789abcdef", min_size=16, max_size=16),
)
def test_any_name_is_a_label_also_with_an_index(step: str, run_name: str, key: str) -> None:
    name = manifests.job_name(step, run_name, key)
    assert len(f"{name}-9999") <= 63
    assert name[0].isalnum() and name[-1].isalnum()
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert key[:8] in name and step in name


def test_names_of_long_runs_differ_by_their_work() -> None:
    names = {manifests.job_name("finetune", "r" * 60, key * 16) for key in "abc"}
    assert len(names) == 3


def test_root_is_refused() -> None:
    with pytest.raises(ValueError, match=r"user must not be root \(got 0\)"):
        ClusterSettings(user=0)
