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

from infra import manifests
from infra.backend import Resources
from infra.manifests_settings import ClusterSettings, settings_from_environment, settings_of
from tests.kubernetes.conftest import spec
from tests.kubernetes_double.admission import violations_of_restricted

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
SPECS = {
    "finetune": spec(learn_rate=5e-5, request={"context": 2048}),
    "tokenize": dataclasses.replace(
        spec(dataset="dataset"), step="tokenize", resources=Resources(cores=4, memory_gib=8)
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


def test_unknown_settings_are_all_named() -> None:
    with pytest.raises(ValueError) as refused:
        settings_of({"queu": "gpus", "xyz": 1})
    assert str(refused.value).splitlines() == [
        "queu is not a setting of a cluster. Did you mean queue?",
        "xyz is not a setting of a cluster.",
    ]


def test_settings_come_from_text_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINETUNE_CLUSTER", "queue: gpus")
    assert settings_from_environment() == ClusterSettings(queue="gpus")
    (tmp_path / "cluster.yaml").write_text("namespace: research\nqueue: gpus\n")
    monkeypatch.setenv("FINETUNE_CLUSTER", str(tmp_path / "cluster.yaml"))
    assert settings_from_environment() == ClusterSettings(queue="gpus", namespace="research")
    monkeypatch.setenv("FINETUNE_CLUSTER", "just words")
    with pytest.raises(ValueError, match="holds no names and values"):
        settings_from_environment()


def test_root_is_refused() -> None:
    with pytest.raises(ValueError, match=r"user must not be root \(got 0\)"):
        ClusterSettings(user=0)
