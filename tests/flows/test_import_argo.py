"""Requests of the reference's workflow, read as parameters of this pipeline."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.cli.argo.request import Imported, import_argo
from trainer.contract.errors import RequestError
from trainer.contract.parameters import Parameters
from trainer.contract.topics import OptimizerConfig, ScheduleConfig

# Every parameter that the reference's workflow declares beside images, with its default.
DECLARED = yaml.safe_load("""
pvc: finetune-data
model: EleutherAI/pythia-2.8b-deduped
dataset: dataset
trust_remote_code: 'false'
tensorizer_uri: ''
retokenize: 'true'
sanitize: 'true'
tokenizer: ''
reorder: ''
no_shuffle: 'false'
sampling: '100'
eot_token: ''
pad_token: ''
boundary_token: '\\n'
boundary_index: '-1'
context: '2048'
prompt_file: ''
prompt_every: '0'
prompt_tokens: '200'
prompt_samples: '5'
top_k: '50'
top_p: '0.95'
temperature: '1.0'
repetition_penalty: '1.1'
warmup_ratio: '0.1'
batch_size: '-1'
force_fp16: 'false'
batch_size_divisor: '1.0'
random_seed: '42'
learn_rate: '5e-5'
epochs: '1'
gradients: '5'
zero_stage: '3'
save_steps: '500'
no_resume: 'false'
logs: logs
wandb_key: ''
project_id: huggingface
run_inference: 'false'
inference_only: 'false'
download_dataset: 'false'
region: ORD1
trainer_gpu: A40
trainer_gpus: 1
trainer_cores: 8
trainer_ram: 192
inference_gpu: RTX_A5000
finetuner_image: gooseai/finetuner
finetuner_tag: b32173f
""")


def workflow(kind: str = "Workflow", **given: Any) -> dict[str, Any]:
    parameters = [{"name": n, "value": v} for n, v in {**DECLARED, **given}.items()]
    arguments = {"arguments": {"parameters": [*parameters]}}
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": kind,
        "spec": {"workflowSpec": arguments} if kind == "CronWorkflow" else arguments,
    }


def imported(content: dict[str, Any]) -> Imported:
    return import_argo(yaml.safe_dump(content), "file.yaml")


@pytest.mark.parametrize("kind", ["Workflow", "WorkflowTemplate", "CronWorkflow"])
def test_every_declared_parameter_is_carried_over_or_named(kind: str) -> None:
    found = imported(workflow(kind, run_name="western", learn_rate="1e-4", boundary_index="3"))
    request = Parameters(**found.parameters)
    assert (request.run_name, request.learn_rate, request.boundary_index) == ("western", 1e-4, 3)
    assert request.model == "EleutherAI/pythia-2.8b-deduped"
    assert request.trainer_ram == 192
    assert request.region == ""  # ORD1 is no region any more: its pods would wait for ever
    assert request.optimizer == OptimizerConfig(weight_decay=0.01)
    assert request.schedule == ScheduleConfig(kind="constant")
    assert "optimizer.weight_decay 0.01, and schedule.kind constant" in found.to_yaml()
    assert "logarithmic there, a line here" in found.to_yaml()
    named = "\n".join(found.notes)
    for name in DECLARED:
        assert (
            name in found.parameters or name in named or name in ("wandb_key", "download_dataset")
        )


def test_a_parameter_file_stands_over_the_references_defaults_not_ours() -> None:
    found = imported({"run_name": "western", "dataset": "books", "epochs": 3})
    assert found.parameters == {
        "run_name": "western",
        "model": "EleutherAI/pythia-2.8b-deduped",
        "dataset": "books",
        "train_ratio": 1.0,
        "epochs": 3,
        "schedule": {"kind": "constant"},
        "optimizer": {"weight_decay": 0.01},
    }
    assert any("train_ratio" in note for note in found.notes)


def test_what_is_printed_is_a_file_for_params(tmp_path: Path) -> None:
    submitted = tmp_path / "submitted.yaml"
    submitted.write_text(json.dumps(workflow(run_name="western", epochs="2")))
    command = [sys.executable, "-m", "flows.cli"]
    done = subprocess.run([*command, "import-argo", submitted], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    request = tmp_path / "request.yaml"
    request.write_text(done.stdout)
    (tmp_path / "finetune-data").mkdir()
    run = [*command, "run", "--params", request, "-p", "dataset=none", "--home", tmp_path]
    refused = subprocess.run(run, capture_output=True, text=True)
    assert refused.returncode == 78
    # The dataset alone is wrong: everything that came from the file was taken.
    assert [line.split()[1] for line in refused.stderr.splitlines() if "error:" in line] == [
        "dataset"
    ]


def test_a_key_is_not_printed() -> None:
    key = "0123456789abcdef0123456789abcdef01234567"
    found = imported({"run_name": "western", "wandb_key": key})
    assert key not in found.to_yaml()
    assert "wandb_key" in found.to_yaml()
    assert "wandb_key" not in found.parameters
    found = imported({"run_name": "western", "hf_key": "hf_AbCdEf"})
    assert "hf_AbCdEf" not in found.to_yaml()
    assert "name that Secret in FINETUNE_CLUSTER" in found.to_yaml()


def test_what_has_no_counterpart_is_named() -> None:
    given = {"run_name": "My_Run.2", "download_dataset": "true", "tokenizer": "pile", "new": "x"}
    found = imported({**given, "retokenize": "true", "tokenizer_tag": "edd9879"})
    named = " ".join(found.notes)
    for name in ("download_dataset", "new", "retokenize", "tokenizer_tag", "My_Run.2"):
        assert name in named
    assert found.parameters["run_name"] == "my-run-2"
    assert found.parameters["tokenizer"] == "EleutherAI/gpt-neox-20b"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("run_name: west\nprompt_tokens: 0\nepochs: 0", "epochs"),
        ("- a\n- b", "file.yaml"),
        ("kind: Pod\nspec: {}", "Pod"),
        ("kind: Workflow\nspec: {}", "spec.arguments.parameters"),
        ("a: [", "file.yaml"),
    ],
)
def test_what_can_not_be_asked_here_is_refused_by_name(text: str, word: str) -> None:
    with pytest.raises(RequestError, match=word):
        import_argo(text, "file.yaml")
