"""Numbers that no optimizer changes are part of the model, in training and in what it saves."""

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.training.forking import Strike, log_of, run_forked, run_step
from tests.training.test_rehearsal import with_other_numbers
from tests.training.volume import CONTEXT, VOCABULARY, make_config, make_volume, read_lines
from trainer.checkpoints.tensors import SliceReader, write_tensors
from trainer.training.verify_resume import main as verify_resume

MIXTURE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 2 * CONTEXT,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}
DEEPSEEK = {
    "n_routed_experts": 8,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 16,
}
# A router's correction as a buffer, and as a parameter without gradients.
KINDS: dict[str, dict[str, Any]] = {
    "deepseek_v3": DEEPSEEK,
    "ernie4_5_moe": {
        "moe_num_experts": 8,
        "moe_k": 2,
        "moe_layer_start_index": 1,
        "moe_num_shared_experts": 1,
    },
}


def make_mixture(volume: Path, kind: str, dtype: torch.dtype = torch.float32) -> Path:
    """A volume whose model's router has corrections as training leaves them, not all zero."""
    make_volume(volume)
    torch.manual_seed(7)
    config = AutoConfig.for_model(kind, **MIXTURE, **KINDS[kind])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.mul_(4)
        model.to(dtype)
        tensors = [*model.named_parameters(), *model.named_buffers()]
        corrections = [t for n, t in tensors if "e_score_correction_bias" in n]
        assert corrections
        for correction in corrections:
            correction.data = torch.randn(correction.shape) * 2  # in fp32 as they are loaded
    model.save_pretrained(volume / "models" / "tiny")
    return volume


def losses(run: Path, name: str = "loss") -> list[float]:
    return [line[name] for line in read_lines(run / "metrics.jsonl") if name in line]


def tensors_of(folder: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).state_dict()


def assert_equal_models(found: Path, expected: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        ours, theirs = tensors_of(found, dtype), tensors_of(expected, dtype)
        assert ours.keys() == theirs.keys()
        assert [n for n in theirs if not torch.equal(ours[n], theirs[n])] == []


@pytest.mark.parametrize("kind", KINDS)
def test_at_rate_0_the_final_model_is_the_base_model(tmp_path: Path, kind: str) -> None:
    volume = make_mixture(tmp_path, kind)
    config = make_config(volume, learn_rate=0, epochs=1)
    assert run_step("finetune", config) == 0, log_of(config)
    assert_equal_models(volume / "run" / "final", volume / "models" / "tiny")


def test_a_router_kept_in_fp32_is_not_rounded_in_the_final_model(tmp_path: Path) -> None:
    volume = make_mixture(tmp_path, "deepseek_v3", torch.bfloat16)
    config = make_config(volume, learn_rate=0, epochs=1)
    assert run_step("finetune", config) == 0, log_of(config)
    final = volume / "run" / "final"
    assert json.loads((final / "config.json").read_text())["dtype"] == "bfloat16"
    assert_equal_models(final, volume / "models" / "tiny")


@pytest.mark.parametrize("zero_stage", [0, 3])
def test_two_processes_train_with_the_base_models_buffers(tmp_path: Path, zero_stage: int) -> None:
    volume = make_mixture(tmp_path, "deepseek_v3")
    runs = []
    for name, changes in (("one", {"gradients": 2}), ("two", {"gradients": 1, "processes": 2})):
        config = make_config(
            volume, run_name=name, request={}, epochs=1, zero_stage=zero_stage, **changes
        )
        assert run_step("finetune", config) == 0, log_of(config)
        runs.append(volume / name)
    assert losses(runs[1]) == pytest.approx(losses(runs[0]), abs=2e-5)
    assert losses(runs[1], "eval_loss") == pytest.approx(losses(runs[0], "eval_loss"), abs=2e-5)


def test_a_killed_run_goes_on_with_its_buffers(tmp_path: Path) -> None:
    volume = make_mixture(tmp_path, "deepseek_v3")
    runs = []
    for name, strike in (
        ("whole", None),
        ("broken", Strike("trainer.training.engine.engine:Engine.step", 7)),
    ):
        config = make_config(volume, run_name=name, request={}, prompt_every=0)
        if strike:
            assert run_step("finetune", config, strike) == -signal.SIGKILL
        assert run_step("finetune", config) == 0, log_of(config)
        runs.append(volume / name)
    assert losses(runs[1]) == losses(runs[0])
    weights = [(run / "final" / "model.safetensors").read_bytes() for run in runs]
    assert weights[0] == weights[1]


def test_verify_finds_a_buffer_that_another_training_would_not_have(tmp_path: Path) -> None:
    volume = make_mixture(tmp_path / "finetune-data", "deepseek_v3")
    config = make_config(volume, epochs=1, save_steps=2, prompt_every=100)
    assert run_step("finetune", config) == 0, log_of(config)
    code, said = run_forked(volume, lambda: verify_resume([str(volume), "run"]))
    assert code == 0, said
    with_other_numbers(volume, "buffer/", lambda v: v + 1, step=6)
    code, said = run_forked(volume, lambda: verify_resume([str(volume), "run"]))
    assert code == 1, said
    assert "buffer differs in 1 tensors" in said


def test_buffers_of_every_kind_are_read_back_as_written(tmp_path: Path) -> None:
    arrays = {
        "buffer/a@0": np.array([1.5, -2], np.float32),
        "buffer/b@0": np.array([2**40], np.int64),
        "buffer/c@0": np.array([True, False, True]),
        "buffer/d@0": np.array([0.1], np.float64),
    }
    write_tensors(tmp_path / "rank.safetensors", arrays)
    reader = SliceReader(tmp_path)
    for name, array in arrays.items():
        found = reader.buffer(name.split("/")[1].removesuffix("@0"))
        assert found.dtype == array.dtype and found.tolist() == array.tolist()
