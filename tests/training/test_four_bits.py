"""QLoRA: a base in 4 bits trains adapters, resumes exactly, and `final` is what was trained."""

import signal
from importlib import util
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.training.forking import Strike, log_of, run_step
from tests.training.test_lora_kinds import logits_of, loss_of
from tests.training.volume import make_config, make_model, make_volume, read_lines
from trainer.contract.errors import RequestError
from trainer.contract.step_configs import FinetuneConfig
from trainer.contract.topics import KernelsConfig, LoraConfig
from trainer.planning.lora_counts import setting_of
from trainer.planning.memory_model import Setting, gpu_parts
from trainer.planning.model_shape import ModelShape
from trainer.planning.setting_rules import setting_problems
from trainer.tokens.store import TokenStore
from trainer.training.engine import four_bits
from trainer.training.limits import refusals

FOUR = {"base_bits": 4, "target_modules": "all-linear", "rank": 4}


def last_loss(run: Path) -> float:
    lines = read_lines(run / "metrics.jsonl")
    return [line["eval_loss"] for line in lines if "eval_loss" in line][-1]


@pytest.mark.parametrize(
    ("architecture", "more"),
    [("gptj", {}), ("neox", {"dora": True}), ("llama", {"modules_to_save": ["lm_head"]})],
)
def test_it_resumes_exactly_and_final_is_what_was_trained(
    tmp_path: Path, architecture: str, more: dict[str, Any]
) -> None:
    volume = make_volume(tmp_path, architecture)
    weights = []
    for name, strike in (
        ("whole", None),
        ("broken", Strike("trainer.training.engine.engine:Engine.step", 7)),
    ):
        changes = {"run_name": name, "request": {}, "lora": {**FOUR, **more}, "learn_rate": 0.02}
        config = make_config(volume, **changes)
        if strike:
            assert run_step("finetune", config, strike) == -signal.SIGKILL, log_of(config)
        assert run_step("finetune", config) == 0, log_of(config)
        weights.append((volume / name / "final/model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert "Warning: " not in log_of(config) and "Failed to load" not in log_of(config)
    final = volume / "whole/final"
    assert loss_of(final, volume) == pytest.approx(last_loss(volume / "whole"), rel=1e-5)
    base = AutoModelForCausalLM.from_pretrained(volume / "models/tiny")
    before = logits_of(base)
    four_bits.round_to_four_bits(base, torch.float32, more.get("modules_to_save", ()))
    rounded = logits_of(base)
    assert (rounded - before).abs().max() > 1e-3  # else four bits would prove nothing
    adapted = logits_of(PeftModel.from_pretrained(base, final / "adapter"))
    merged = logits_of(AutoModelForCausalLM.from_pretrained(final))
    torch.testing.assert_close(adapted, merged, rtol=1e-4, atol=1e-5)
    assert "were in 4 bits in training" in (final / "README.md").read_text()


@pytest.mark.parametrize("stage", [2, 3])
def test_several_processes_train_the_same_base_in_four_bits(tmp_path: Path, stage: int) -> None:
    volume, losses = make_volume(tmp_path), []
    for name, spread in (("alone", {}), ("spread", {"processes": 2, "zero_stage": stage})):
        changes = {"run_name": name, "request": {}, "lora": FOUR, "learn_rate": 0.02, **spread}
        config = make_config(volume, gradients=1 if spread else 2, epochs=1, **changes)
        assert run_step("finetune", config) == 0, log_of(config)
        lines = read_lines(volume / name / "metrics.jsonl")
        losses.append([line.get("loss", line.get("eval_loss")) for line in lines])
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


def test_the_backward_pass_is_that_of_the_rounded_weights() -> None:
    layer = torch.nn.Linear(96, 64)
    packed = four_bits.FourBitLinear(layer)
    x = torch.randn(5, 96, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    with torch.no_grad():
        layer.weight.copy_(packed.weight)
    slope = torch.randn(5, 64)
    packed(x).backward(slope)
    layer(y).backward(slope)
    assert x.grad is not None and y.grad is not None
    torch.testing.assert_close(x.grad, y.grad)
    assert not list(packed.parameters()) or [n for n, _ in packed.named_parameters()] == ["bias"]
    assert packed.packed.numel() == 96 * 64 // 2


def test_the_head_and_what_is_trained_whole_stay_as_they_are() -> None:
    model = make_model("neox")
    four_bits.quantize(model, ["query_key_value"])
    kinds = {name.rpartition(".")[2]: type(module) for name, module in model.named_modules()}
    assert kinds["lm_head"] is torch.nn.Linear and kinds["query_key_value"] is torch.nn.Linear
    assert kinds["dense_h_to_4h"] is four_bits.FourBitLinear


def test_a_model_without_linear_layers_is_refused() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=32, n_layer=1, n_head=2))
    with pytest.raises(RequestError, match=r"lora.base_bits=4 finds no linear layer .*'gpt2'"):
        four_bits.quantize(model)


def test_the_plan_counts_half_a_byte_for_a_weight() -> None:
    described = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
    described |= {"intermediate_size": 11008, "vocab_size": 32000, "model_type": "llama"}
    shape = ModelShape.from_config({**described, "hidden_act": "silu"})
    weights = []
    for bits in (16, 4):
        lora = setting_of({"base_bits": bits})
        setting = Setting(context=2048, trained_parameters=4_000_000, **lora)
        weights.append(gpu_parts(shape, setting)["weights"] / 2**30)
    assert weights[0] == pytest.approx(12.6, abs=0.1)
    assert weights[1] == pytest.approx(3.6, abs=0.1)  # embeddings and head in 16 bits


def test_what_does_not_go_with_it_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"on_gpu": False, "force_fp16": False, "precision": "", "adam_bits": 32, "offload": ""}
    rest = {"liger": False, "zero_stage": 0, "processes": 1, "base_bits": 4}
    (problem,) = setting_problems(**asked, **rest, compile=True)  # type: ignore[arg-type]
    assert problem.startswith("kernels.compile can't compile layers in 4 bits")
    volume = make_volume(tmp_path)
    values = {**make_config(volume), "lora": LoraConfig(base_bits=4), "kernels": KernelsConfig()}
    store = TokenStore.open(volume / "tokens/tiny")
    refusals.refuse_what_cannot_be_trained(FinetuneConfig(**values), store)
    there = util.find_spec

    def without(name: str) -> Any:
        return None if name == "bitsandbytes" else there(name)

    monkeypatch.setattr(refusals, "find_spec", without)
    with pytest.raises(RequestError, match=r"lora.base_bits=4 needs the package bitsandbytes"):
        refusals.refuse_what_cannot_be_trained(FinetuneConfig(**values), store)
