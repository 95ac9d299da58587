"""What is wrong with a request is found before a GPU is asked for, and the run works in small."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import torch

from flows.cli.rehearse.checks import _jobs_of, problems_of
from flows.cli.rehearse.small_run import small_request
from tests.flows.small_volume import PVC, finetune
from tests.flows.test_deployment import api
from tests.flows.test_retrain import guide
from tests.hub_double import HubDouble, HubModel
from tests.kubernetes_double.cluster import Cluster
from tests.object_store import s3_server
from tests.plan.models import GPT_J_6B
from trainer.contract.cluster_settings import ClusterSettings
from trainer.contract.errors import RequestError
from trainer.contract.parameters import Parameters
from trainer.contract.step_configs import FetchConfig
from trainer.contract.validation import load_parameters
from trainer.fetch import hub_client
from trainer.rehearse.small_volume import main as make_small_volume
from trainer.rehearse.small_volume import shrink, shrunken

RIGHT = {"run_name": "first", "model": "models/tiny", "context": 64, "batch_size": 1}
LABELS = {"gpu.nvidia.com/class": "A40", "topology.kubernetes.io/region": "US-EAST-01"}
WIDE = {"model_type": "gptj", "n_embd": 16384, "n_layer": 90, "n_head": 64, "n_positions": 2048}
KEY = "0123456789abcdef0123456789abcdef01234567"
# What is wrong, by where it is found; the word is in the message, most often the parameter.
TYPED: list[tuple[dict[str, Any], str]] = [
    ({"run_name": "My_Run"}, "run_name"),
    ({"epoch": 2}, "Did you mean epochs"),
    ({"epochs": 0}, "epochs"),
    ({"learn_rate": "fast"}, "learn_rate"),
    ({"wandb_key": KEY}, "wandb_key"),
    ({"cluster": {"qeue": "gpus"}}, "cluster"),
    ({"dataset": "/etc"}, "dataset"),
]
ON_VOLUME: list[tuple[dict[str, Any], str]] = [
    ({"dataset": "books"}, "dataset"),
    ({"dataset": "empty"}, "dataset"),
    ({"model": "models/pickled"}, "pickled"),
    ({"context": 128}, "context"),
    ({"prompt_file": "prompts.txt"}, "prompt_file"),
    ({"run_name": "models"}, "run_name"),
    ({"pvc": "elsewhere"}, "pvc"),
]
IN_THE_PLAN: list[tuple[dict[str, Any], str]] = [
    ({"model": "models/none"}, "model is not on the volume"),
    ({"trainer_gpu": "A4O"}, "trainer_gpu"),
    ({"model": "models/wide", "context": 2048}, "model"),
    ({"batch_size": 100_000}, "dataset is too small"),
    ({"context": 128}, "context"),
]
ON_THE_CLUSTER: list[tuple[dict[str, Any], str]] = [
    ({"pvc": "other-data"}, "pvc"),
    ({"cluster": {"secrets": ["hub"]}}, "cluster.secrets"),
    ({"cluster": {"image_pull_secrets": ["registry"]}}, "cluster.image_pull_secrets"),
    ({"cluster": {"service_account": "steps"}}, "cluster.service_account"),
    ({"cluster": {"namespace": "nowhere"}}, "cluster.namespace is not there (got 'nowhere')"),
    ({"wandb_key": "wandb"}, "wandb_key"),
    ({"trainer_gpu": "H200"}, "trainer_gpu"),
    ({"region": "LAS1"}, "region"),
]


SERVED: dict[str, Any] = {
    "run_inference": True,
    "inference_gpu": "A40",
    "serving": {"kind": "deployment"},
}


@pytest.fixture(scope="module")
def volume(home: Path) -> Path:
    made = home / PVC
    (made / "empty").mkdir()
    (made / "models/wide").mkdir()
    (made / "models/wide/config.json").write_text(json.dumps({**WIDE, "vocab_size": 400}))
    shutil.copytree(made / "models/tiny", made / "models/pickled")
    (made / "models/pickled/model.safetensors").unlink()
    torch.save({}, made / "models/pickled/pytorch_model.bin")
    return made


@pytest.fixture(scope="module")
def cluster(volume: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One with a node that has an A40."""
    with Cluster(tmp_path_factory.mktemp("cluster"), {PVC: volume}) as running:
        node = {"metadata": {"name": "gpu-1", "labels": LABELS}}
        running.do(lambda: running.store.create("nodes", "", node))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KUBECONFIG", str(running.kubeconfig))
            yield running


def found(home: Path, changed: dict[str, Any], *checks: str, on_cluster: bool = True) -> list[str]:
    parameters = load_parameters(Parameters, {**RIGHT, **changed})
    said: list[str] = []
    return problems_of(parameters, home, on_cluster=on_cluster, say=said.append, checks=checks)


@pytest.mark.parametrize(("changed", "word"), TYPED)
def test_what_is_typed_wrong_is_named(changed: dict[str, Any], word: str) -> None:
    with pytest.raises(RequestError, match=word) as refused:
        load_parameters(Parameters, {**RIGHT, **changed})
    assert KEY not in str(refused.value)


@pytest.mark.parametrize(("changed", "word"), ON_VOLUME)
def test_what_is_not_on_the_volume_is_named(
    home: Path, volume: Path, changed: dict[str, Any], word: str
) -> None:
    (problem,) = found(home, changed, "request", on_cluster=False)
    assert word in problem


@pytest.mark.parametrize(("changed", "word"), IN_THE_PLAN)
def test_what_can_not_be_planned_is_named(
    home: Path,
    volume: Path,
    monkeypatch: pytest.MonkeyPatch,
    changed: dict[str, Any],
    word: str,
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody answers there
    assert any(word in problem for problem in found(home, changed, "plan"))


@pytest.mark.parametrize(("changed", "word"), ON_THE_CLUSTER)
def test_what_the_cluster_lacks_is_named(
    home: Path, cluster: Cluster, changed: dict[str, Any], word: str
) -> None:
    assert any(word in problem for problem in found(home, changed, "cluster"))


def test_the_nodes_regions_are_named_and_no_region_is_any(home: Path, cluster: Cluster) -> None:
    (problem,) = found(home, {"region": "ORD1"}, "cluster")
    assert problem.startswith("region is on no node (got 'ORD1'). There are: US-EAST-01.")
    assert found(home, {"region": "US-EAST-01"}, "cluster") == []
    assert found(home, {"region": ""}, "cluster") == []


def test_a_region_that_could_not_be_compared_is_told(home: Path, cluster: Cluster) -> None:
    cluster.faults.allowed = lambda asked: asked.resource != "nodes"
    parameters, said = load_parameters(Parameters, {**RIGHT, "region": "ORD1"}), []
    try:
        problems_of(parameters, home, on_cluster=True, say=said.append, checks=("cluster",))
    finally:
        cluster.faults.allowed = lambda asked: True
    assert any("region and GPU classes were not compared with the nodes" in line for line in said)


RULES: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"refuses_pods": "exceeded quota: cpu"}, {}, "no quota left"),
    ({"refuses_pods": "maximum memory usage per Container is 64Mi"}, {}, "64Mi"),
    ({"most": {"jobs": 0}}, {}, "Job first-plan-"),
    ({"most": {"jobs": 0}}, {"inference_only": True}, "Job first-deploy-"),
    ({"most": {"services": 0}}, {"cluster": {"nodes": 2}}, "Service node-first-finetune-"),
    ({"most": {"deployments": 0}}, SERVED, "Deployment inference-first-1"),
    ({"most": {"services": 0}}, SERVED, "Service inference-first"),
    ({"refuses_pods": "too big"}, {**SERVED, "inference_only": True}, "Pod of Job first-deploy-"),
]


@pytest.mark.parametrize(("rules", "changed", "word"), RULES)
def test_what_the_namespace_would_refuse_is_named(
    home: Path,
    cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
    rules: dict[str, Any],
    changed: dict[str, Any],
    word: str,
) -> None:
    for name, value in rules.items():
        monkeypatch.setattr(cluster.rules, name, value)
    problems = found(home, changed, "cluster")
    assert any(word in problem for problem in problems), problems


def test_a_kind_of_service_that_the_cluster_lacks_is_named(
    home: Path, volume: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Cluster(tmp_path, {PVC: volume}, kserve=False) as without:
        monkeypatch.setenv("KUBECONFIG", str(without.kubeconfig))
        problems = found(home, {**SERVED, "serving": {"kind": "kserve"}}, "cluster")
    assert any("the cluster has no inferenceservices" in problem for problem in problems), problems
    assert not any("namespace" in problem and "is not there" in problem for problem in problems)


def test_one_reason_for_the_pods_of_every_step_is_told_once(
    home: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster.rules, "refuses_pods", "exceeded quota: cpu")
    assert len(found(home, {}, "cluster")) == 1


def test_a_job_that_exists_is_not_refused_by_the_quota_that_it_fills(
    home: Path, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = load_parameters(Parameters, RIGHT)
    jobs = _jobs_of(parameters, ClusterSettings(), home)
    for job in jobs:
        suspended = {**job, "spec": {**job["spec"], "suspend": True}}
        cluster.create("jobs", suspended)
    monkeypatch.setattr(cluster.rules, "most", {"jobs": len(jobs)})
    assert found(home, {}, "cluster") == []
    for job in cluster.jobs():
        cluster.do(lambda job=job: cluster.store.remove("jobs", job))


def test_a_right_that_is_lacking_is_named(home: Path, cluster: Cluster) -> None:
    cluster.faults.allowed = lambda asked: (asked.verb, asked.resource) != ("create", "jobs")
    try:
        problems = found(home, {}, "cluster")
    finally:
        cluster.faults.allowed = lambda asked: True
    assert any("may not create jobs.batch" in problem for problem in problems)


def test_a_request_that_is_right_passes_and_nothing_is_made(home: Path, cluster: Cluster) -> None:
    assert found(home, {}, "request", "plan", "cluster") == []
    made = cluster.do(lambda: cluster.store.list("jobs", ""))
    assert made == []


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32, "head_dim": 128,
         "num_key_value_heads": 8, "num_hidden_layers": 32, "intermediate_size": 14336},
        {"model_type": "gpt_neox", "hidden_size": 2560, "num_attention_heads": 32,
         "num_hidden_layers": 32, "intermediate_size": 10240, "rotary_pct": 0.25},
        {"model_type": "gpt_neo", "hidden_size": 2560, "num_heads": 20, "num_layers": 32,
         "attention_types": [[["global", "local"], 16]]},
        {"model_type": "gptj", "n_embd": 4096, "n_head": 16, "n_layer": 28, "rotary_dim": 64},
        {"model_type": "gpt2", "n_embd": 768, "n_head": 12, "n_layer": 12, "n_inner": None},
    ],
    ids=lambda config: config["model_type"],
)  # fmt: skip
def test_a_model_is_made_small_and_keeps_its_kind(config: dict[str, Any], tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    (tmp_path / "config.json").write_text(json.dumps({**shrunken(config), "vocab_size": 500}))
    small = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    assert small.config.model_type == config["model_type"]
    assert sum(p.numel() for p in small.parameters()) < 600_000
    assert small(torch.zeros(1, 8, dtype=torch.long)).logits.shape == (1, 8, 500)


CODE = """
from transformers import GPT2Config, GPT2LMHeadModel
class HomeConfig(GPT2Config):
    model_type = "homemade"
class HomeModel(GPT2LMHeadModel):
    config_class = HomeConfig
"""


def test_a_model_with_code_of_its_own_is_made_small_with_it(volume: Path, tmp_path: Path) -> None:
    home_made = shutil.copytree(volume / "models/tiny", tmp_path / "models/homemade")
    (home_made / "modeling.py").write_text(CODE)
    places = {"AutoConfig": "modeling.HomeConfig", "AutoModelForCausalLM": "modeling.HomeModel"}
    config = {"model_type": "homemade", "auto_map": places, "n_embd": 768, "vocab_size": 400}
    config |= {"n_head": 12, "n_layer": 12}
    (home_made / "config.json").write_text(json.dumps(config))
    shutil.copytree(volume / "dataset", tmp_path / "dataset")
    (tmp_path / "prompts.txt").write_text("Once\n\nThe sheriff\nA stranger\n")
    asked = {"dataset": "dataset", "model": "models/homemade", "prompt_file": "prompts.txt"}
    named = {"volume": str(tmp_path), "run_name": "run", "trust_remote_code": True}
    shrink(FetchConfig(**asked, **named), tmp_path / "small")
    small = tmp_path / "small/models/small"
    assert json.loads((small / "config.json").read_text())["n_embd"] == 64
    assert "HomeModel" in (small / "modeling.py").read_text()
    assert (tmp_path / "small/prompts.txt").read_text() == "Once\nThe sheriff"


def test_what_a_cpu_can_do_is_rehearsed_as_it_was_asked(tmp_path: Path) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset/tales-64.tokens").write_bytes(bytes(64 * 2 * 24))
    given = {"precision": "bf16", "optimizer": {"adam_bits": 8}, "trust_remote_code": True}
    more = {"prompt_file": "my/prompts", "kernels": {"compile": True, "liger": True}}
    request = small_request(load_parameters(Parameters, {**RIGHT, **given, **more}), tmp_path)
    small = load_parameters(Parameters, request)
    assert (small.precision, small.optimizer.adam_bits) == ("bf16", 8)
    assert (small.kernels.compile, small.kernels.liger) == (True, False)
    assert (small.trust_remote_code, small.prompt_file) == (True, "prompts.txt")
    assert (small.dataset, small.sampling) == ("dataset/tales-64.tokens", 100)
    given = {"precision": "fp16"}
    request = small_request(load_parameters(Parameters, {**RIGHT, **given}), tmp_path)
    assert request["precision"] == ""


# --- a cluster's run, from a laptop that has nothing of its volume ------------------------


@pytest.fixture
def hub(volume: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubDouble]:
    """One with a model of GPT-J's size and the tiny one's tokenizer."""
    files = {path.name: path.read_bytes() for path in (volume / "models/tiny").iterdir()}
    tiny = json.loads(files["config.json"])
    names = ("vocab_size", "bos_token_id", "eos_token_id")
    files["config.json"] = json.dumps(GPT_J_6B | {name: tiny[name] for name in names}).encode()
    with HubDouble({"EleutherAI/gpt-j-6B": HubModel(files)}) as double:
        monkeypatch.setenv("HF_ENDPOINT", double.url)
        yield double


@pytest.mark.parametrize(
    ("changed", "problem", "said"),
    [
        ({}, "", "the text is not counted"),
        ({"budget": {"max_hours": 0.001}}, "", "no limit of time or money"),
        ({"model": "models/mine"}, "", "not planned here; the model may be on the claim"),
        ({"trainer_gpu": "RTX_A4000"}, "does not fit the memory of RTX_A4000", ""),
        ({"context": 4096}, "context is larger than the model takes", ""),
        ({"dataset": "s3://texts/west"}, "", "s3://texts/west can't be listed"),
    ],
)
def test_without_the_volume_what_can_be_seen_from_here_is_looked_at(
    tmp_path: Path,
    hub: HubDouble,
    monkeypatch: pytest.MonkeyPatch,
    changed: dict[str, Any],
    problem: str,
    said: str,
) -> None:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")  # a laptop without keys
    for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    given = {"run_name": "first", "model": "EleutherAI/gpt-j-6B"}
    lines: list[str] = []
    problems = problems_of(
        Parameters(**{**given, **changed}),
        tmp_path,
        on_cluster=True,
        say=lines.append,
        checks=("request", "plan"),
    )
    assert [problem in one for one in problems] == [True] * bool(problem)
    assert said in "\n".join(lines)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(2400)
def test_readmes_rehearsal_with_a_cluster_runs_every_step_in_small_and_leaves_nothing(
    cluster: Cluster,
    hub: HubDouble,
    volume: Path,
    api_url: str,
    environment: dict[str, str],
    tmp_path: Path,
) -> None:
    (line,) = (line for line in guide() if line.startswith("finetune rehearse"))
    words = line.split()
    assert "kubernetes" in words and "dataset=s3://texts/west" in words
    text = "".join(path.read_text() for path in (volume / "dataset").rglob("*.txt"))
    before = sorted(volume.rglob("*"))
    with s3_server() as url:
        keys = {"AWS_ACCESS_KEY_ID": "mine", "AWS_SECRET_ACCESS_KEY": "hidden"}
        keys |= {"AWS_ENDPOINT_URL": url, "AWS_DEFAULT_REGION": "us-east-1"}
        put(url, "texts", "west/tales.txt", text * 8)
        environment = {**environment, **keys, "HF_ENDPOINT": hub.url}
        environment["KUBECONFIG"] = str(cluster.kubeconfig)
        process: subprocess.Popen[str] = finetune(tmp_path, environment, *words[1:])
        out, err = process.communicate(timeout=1000)
    assert process.returncode == 0, out + err
    assert "what is on the claim is left out" in out
    assert [out.count(f"{check:<8} in order") for check in ("request", "plan", "cluster")] == [
        1
    ] * 3
    assert "interrupted once" in out
    assert not hub.gets(".safetensors")
    assert cluster.jobs() == []
    assert list(tmp_path.iterdir()) == []
    assert sorted(volume.rglob("*")) == before
    # Nor a run in the UI, of whose interruption and end the server's automations would tell.
    assert api(api_url, "flow_runs/filter", flow_runs={"name": {"any_": ["stories"]}}) == []


def put(url: str, bucket: str, key: str, text: str) -> None:
    names = {"aws_access_key_id": "mine", "aws_secret_access_key": "hidden"}
    client = boto3.client("s3", endpoint_url=url, region_name="us-east-1", **names)
    client.create_bucket(Bucket=bucket)
    client.put_object(Bucket=bucket, Key=key, Body=text.encode())


def test_a_hub_that_does_not_answer_is_told_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hub_client, "FIRST_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(hub_client.constants, "ENDPOINT", "http://127.0.0.1:9")
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset/tale.txt").write_text("The sheriff rode into town.\n")
    asked = {"volume": str(tmp_path), "model": "org/none", "dataset": "dataset", "run_name": "r"}
    assert make_small_volume([json.dumps(asked), str(tmp_path / "small")]) == 1
    assert capsys.readouterr().err.endswith(
        "does not answer ([Errno 111] Connection refused). Correct it, or try again.\n"
    )
