"""The memory model: held to real models' sizes and to the reference's published run."""

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from tests.plan.models import GPT_J_6B, LLAMA_3_8B, MODELS
from trainer.planning.memory_model import (
    REFERENCE,
    Setting,
    checkpoint_bytes,
    gpu_bytes,
    gpu_parts,
    host_bytes,
    host_parts,
    loss_bytes,
    process_bytes,
)
from trainer.planning.model_shape import ModelShape

GPT_J = ModelShape.from_config(GPT_J_6B)


def test_parameters_are_those_of_the_real_models() -> None:
    # On torch's meta device, in a process of its own: nothing is allocated.
    code = """
import json, sys, torch
from transformers import AutoConfig, AutoModelForCausalLM
for kind, config in json.load(sys.stdin).items():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    print(kind, sum(p.numel() for p in model.parameters()))
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(MODELS), capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    real = dict(line.split() for line in ran.stdout.splitlines())
    assert real.keys() == MODELS.keys()
    for kind, config in MODELS.items():
        planned = ModelShape.from_config(config).parameters
        assert planned == pytest.approx(int(real[kind]), rel=0.002), kind


def test_memory_of_the_references_published_run() -> None:
    # 37 GB of GPU memory and 115 GB of host memory in use: GPT-J 6B on one A40.
    assert gpu_bytes(GPT_J, REFERENCE) == pytest.approx(37e9, rel=0.25)
    assert host_bytes(GPT_J, REFERENCE) == pytest.approx(115e9, rel=0.25)


def test_text_part_of_a_model_for_pictures_too_is_what_counts() -> None:
    whole = {"model_type": "llava", "text_config": LLAMA_3_8B}
    assert ModelShape.from_config(whole) == ModelShape.from_config(LLAMA_3_8B)


@pytest.mark.parametrize("missing", ["n_embd", "n_layer", "n_head", "vocab_size"])
def test_config_that_says_too_little_is_refused_by_name(missing: str) -> None:
    config = {name: value for name, value in GPT_J_6B.items() if name != missing}
    with pytest.raises(ValueError, match=r"config\.json does not say the model's"):
        ModelShape.from_config(config)


def test_model_without_positions_has_no_limit() -> None:
    config = {name: value for name, value in GPT_J_6B.items() if name != "n_positions"}
    assert ModelShape.from_config(config).positions is None


def test_each_zero_stage_spreads_one_thing_more() -> None:
    settings = [
        Setting(context=2048, zero_stage=stage, processes=8, precision="fp32") for stage in range(4)
    ]
    parts = [gpu_parts(GPT_J, setting) for setting in settings]
    numbers = GPT_J.parameters
    # Stage 0 updates the weights in use; the others keep a copy for Adam.
    assert [part["optimizer"] for part in parts] == [8 * numbers] + [12 * numbers // 8] * 3
    assert [part["weights"] for part in parts] == [4 * numbers] * 3 + [4 * numbers // 8]
    assert parts[1]["gradients"] - parts[2]["gradients"] > numbers  # 7/8 of them, less a bucket


def test_offload_moves_the_optimizer_to_the_host() -> None:
    near = Setting(context=2048, processes=4, processes_per_node=4)
    far = replace(near, offload=True)
    assert gpu_parts(GPT_J, far)["optimizer"] == 0
    kept = host_bytes(GPT_J, near) - host_parts(GPT_J, near)["checkpoint copy"]
    moved = host_bytes(GPT_J, far) - kept
    # All four share one node: fp32 weights, moments and gradients, and gradients in bf16.
    assert moved == pytest.approx(18 * GPT_J.parameters, rel=1e-6)


def test_checkpoints_are_written_from_a_copy_of_what_is_trained() -> None:
    def copied(**changes: Any) -> int:
        setting = Setting(context=2048, processes=4, processes_per_node=2, **changes)
        return host_parts(GPT_J, setting).get("checkpoint copy", 0)

    # Each of two nodes holds one half, whatever the ZeRO stage: all save each number once.
    assert copied(zero_stage=0) == copied(zero_stage=3) == 12 * GPT_J.parameters // 4 * 2
    assert copied(trained_parameters=4_000_000) == 12 * 4_000_000 // 2
    assert copied(offload=True) == 0  # they are in host memory, and written from there
    # On a CPU it takes of the memory that a batch could have.
    setting = Setting(context=2048, on_gpu=False)
    parts = host_parts(GPT_J, setting)
    assert parts["checkpoint copy"] == 12 * GPT_J.parameters
    assert process_bytes(GPT_J, setting) == sum(parts.values())


def test_where_training_leaves_the_host_free_the_final_model_decides() -> None:
    # LoRA's optimizer and copy are small; the merged model is made in fp32.
    lora = Setting(context=2048, trained_parameters=4_000_000)
    held = host_bytes(GPT_J, lora) - host_parts(GPT_J, lora)["processes"]
    assert held == 4 * GPT_J.parameters
    assert "final model" not in host_parts(GPT_J, Setting(context=2048))


def test_chunked_loss_does_not_grow_with_the_batch_as_whole_logits_do() -> None:
    def loss(batch_size: int, chunked: bool) -> int:
        setting = Setting(context=2048, batch_size=batch_size, chunked_loss=chunked)
        return loss_bytes(GPT_J, setting)

    assert loss(8, True) < 1.5 * loss(1, True)
    assert loss(8, False) == 8 * loss(1, False)
    assert loss(8, True) < loss(8, False) / 10


def test_checkpoint_holds_weights_and_both_moments() -> None:
    assert checkpoint_bytes(GPT_J) == 12 * GPT_J.parameters
