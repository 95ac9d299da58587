"""`finetune render`: what the flow would create on a cluster, as YAML that a cluster takes."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from flows.cli.cluster_yaml import UNKNOWN_STORE, render_request
from tasks import configs
from tasks.specs import step_spec
from trainer.contract.errors import RequestError
from trainer.contract.parameters import Parameters
from trainer.contract.validation import load_parameters
from trainer.contract.work_key import work_key

STORE = "tokens/dataset-0123456789abcdef"


def asked(**given: Any) -> Parameters:
    return load_parameters(Parameters, {"run_name": "example", **given})


def rendered(home: Path, **given: Any) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(render_request(asked(**given), home, tokens=STORE)))


def config_of(job: dict[str, Any]) -> dict[str, Any]:
    annotations = job["spec"]["template"]["metadata"]["annotations"]
    return yaml.safe_load(annotations["finetune-pipeline/config"])


def test_each_step_is_a_job_that_a_cluster_takes(tmp_path: Path) -> None:
    jobs = rendered(tmp_path, model="EleutherAI/gpt-j-6B", tokenizer="gpt2@main")
    steps = [job["metadata"]["labels"]["app.kubernetes.io/component"] for job in jobs]
    assert steps == ["fetch", "tokenize", "finetune", "evaluate"]
    for job in jobs:
        for version in ("1.31", "1.37"):
            kubernetes_validate.validate(job, version, strict=True)
    trained = config_of(jobs[2])
    assert trained["model"] == "models/EleutherAI/gpt-j-6B"
    assert trained["tokenizer"] == "models/gpt2@main--tokenizer"
    assert trained["tokens"] == config_of(jobs[3])["tokens"] == STORE


def test_a_job_is_the_one_that_the_flow_would_make(tmp_path: Path) -> None:
    """Its name is the lock: who applies it and who runs the flow must mean the same Job."""
    (tmp_path / "finetune-data/org/own").mkdir(parents=True)
    parameters = asked(model="org/own", trainer_gpus=2)
    config = configs.finetune_config(
        parameters.model_dump(),
        parameters.request,
        model="org/own",
        tokenizer="",
        tokens=STORE,
        attempt="flow-run-1",
        earlier_outcomes=[{"step": "fetch", "status": "done"}],
    )
    spec = step_spec(parameters.model_dump(), "finetune", config, attempt="flow-run-1")
    fetch = configs.fetch_config(parameters.model_dump(), parameters.request)
    keys = [work_key("fetch", fetch), spec.key]
    [fetching, _, training, _] = rendered(tmp_path, model="org/own", trainer_gpus=2)
    key = "finetune-pipeline/key"
    assert [job["metadata"]["annotations"][key] for job in (fetching, training)] == keys


def test_several_nodes_and_the_settings_of_the_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_CLUSTER", "{queue: slow, namespace: research}")
    made = rendered(tmp_path, cluster={"nodes": 2, "queue": "gpus", "grace_seconds": 600})
    kinds = [(o["kind"], o["metadata"]["namespace"]) for o in made]
    assert kinds == [(kind, "research") for kind in ("Job", "Job", "Job", "Service", "Job")]
    training = made[2]
    assert training["spec"]["completionMode"] == "Indexed"
    assert training["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    assert config_of(training)["nodes"] == 2
    pod = training["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > config_of(training)["grace_seconds"] == 600
    assert {o["spec"].get("completions") for o in made if o["kind"] == "Job"} == {1, 2}


@pytest.mark.parametrize(
    ("kind", "kinds"), [("", ["InferenceService"]), ("deployment", ["Deployment", "Service"])]
)
def test_a_model_that_is_to_be_served_has_its_service_too(
    tmp_path: Path, kind: str, kinds: list[str]
) -> None:
    served = {"run_inference": True, "serving": {"kind": kind}}
    made = rendered(tmp_path, **served)
    assert [o["kind"] for o in made] == ["Job"] * 4 + kinds
    only = rendered(tmp_path, inference_only=True, **served)
    assert [o["kind"] for o in only] == kinds
    assert only[-1]["metadata"]["name"] == "inference-example"
    assert "example/final" in str(only[0])


def test_a_wrong_cluster_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for cluster in ({"nodes": 0}, {"queu": "gpus"}, {"secrets": ["hf_AbCdEf012"]}):
        with pytest.raises(RequestError, match=r"^cluster\.") as refused:
            asked(cluster=cluster)
        assert "hf_AbCdEf012" not in str(refused.value)
    with pytest.raises(RequestError, match=r"cluster\.environment can be read .*got HF_TOKEN"):
        asked(cluster={"environment": {"HF_TOKEN": "hf_AbCdEf012"}})
    monkeypatch.setenv("FINETUNE_CLUSTER", "queu: gpus")
    with pytest.raises(RequestError, match="queu is not a setting of a cluster"):
        render_request(asked(), tmp_path)


def test_on_the_command_line_it_can_be_piped_and_touches_nothing(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    command = [sys.executable, "-m", "flows.cli", "render", "--home", str(home)]
    command += ["-p", "run_name=example", "--step", "tokenize", "--step", "finetune"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [o["kind"] for o in yaml.safe_load_all(done.stdout)] == ["Job", "Job"]
    assert f"{UNKNOWN_STORE} stands for what tokenize makes" in done.stderr
    assert list(home.iterdir()) == []
