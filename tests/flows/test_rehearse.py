"""What is wrong with a request is found before a GPU is asked for, and the run works in small."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from flows.parameters import Parameters
from flows.rehearse import problems_of
from tests.flows.small_volume import PVC, finetune
from tests.kubernetes_double.cluster import Cluster
from trainer.config import load_parameters
from trainer.errors import RequestError
from trainer.shrinking import shrunken

RIGHT = {"run_name": "first", "model": "models/tiny", "context": 64, "batch_size": 1}
LABELS = {"gpu.nvidia.com/class": "A40", "topology.kubernetes.io/region": "ORD1"}
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
    ({"cluster": {"namespace": "nowhere"}}, "nowhere"),
    ({"wandb_key": "wandb"}, "wandb_key"),
    ({"trainer_gpu": "H200"}, "trainer_gpu"),
    ({"region": "LAS1"}, "region"),
]


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


def found(home: Path, changed: dict[str, Any], *checks: str) -> list[str]:
    parameters = load_parameters(Parameters, {**RIGHT, **changed})
    said: list[str] = []
    return problems_of(parameters, home, on_cluster=True, say=said.append, checks=checks)


@pytest.mark.parametrize(("changed", "word"), TYPED)
def test_what_is_typed_wrong_is_named(changed: dict[str, Any], word: str) -> None:
    with pytest.raises(RequestError, match=word) as refused:
        load_parameters(Parameters, {**RIGHT, **changed})
    assert KEY not in str(refused.value)


@pytest.mark.parametrize(("changed", "word"), ON_VOLUME)
def test_what_is_not_on_the_volume_is_named(
    home: Path, volume: Path, changed: dict[str, Any], word: str
) -> None:
    (problem,) = found(home, changed, "request")
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


def test_every_step_is_run_in_small_and_nothing_is_left(
    home: Path, volume: Path, environment: dict[str, str]
) -> None:
    given = {**RIGHT, "gradients": 2}
    words = [word for item in given.items() for word in ("-p", "=".join(map(str, item)))]
    process: subprocess.Popen[str] = finetune(home, environment, "rehearse", *words)
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, out + err
    assert "interrupted once" in out
    assert not (volume / "first").exists()
    assert not list((volume / "cache/rehearsals").iterdir())
