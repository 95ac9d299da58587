"""rsLoRA, DoRA, all linear layers, and modules trained whole: merged exactly, loaded by peft."""

import dataclasses
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.training.forking import Strike, log_of, run_step
from tests.training.test_lora import make_tied
from tests.training.test_memory import configuration
from tests.training.volume import CONTEXT, VOCABULARY, make_config, make_volume, read_lines
from trainer.contract.errors import RequestError
from trainer.contract.parameters import Parameters
from trainer.contract.topics import LoraConfig
from trainer.contract.validation import load_parameters
from trainer.models.count import count
from trainer.planning.lora_counts import adapter_parameters, setting_of
from trainer.planning.model_shape import ModelShape
from trainer.tokens.store import TokenStore
from trainer.training.data.validation import held_out_loss
from trainer.training.engine.adapters import add_adapters
from trainer.training.engine.loss import CausalLoss

KINDS: list[tuple[str, dict[str, Any]]] = [
    ("gptj", {"rslora": True, "rank": 16}),
    ("neox", {"dora": True, "target_modules": "all-linear"}),
    ("llama", {"dora": True, "rslora": True, "dropout": 0.1}),
    ("llama", {"modules_to_save": ["embed_tokens", "lm_head"]}),
]


def logits_of(model: Any) -> torch.Tensor:
    ids = (torch.arange(3 * CONTEXT).view(3, CONTEXT) * 7 + 1) % VOCABULARY
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def loss_of(folder: Path, volume: Path) -> float | None:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    store = TokenStore.open(volume / "tokens/tiny")
    with torch.no_grad():
        return held_out_loss(CausalLoss(model), store, 4)


@pytest.mark.parametrize(("architecture", "lora"), KINDS)
def test_each_kind_resumes_exactly_merges_to_its_loss_and_loads_in_peft(
    tmp_path: Path, architecture: str, lora: dict[str, Any]
) -> None:
    volume = make_tied(tmp_path) if architecture == "llama" else make_volume(tmp_path, architecture)
    weights = []
    for name, strike in (
        ("whole", None),
        ("broken", Strike("trainer.training.engine.engine:Engine.step", 7)),
    ):
        config = make_config(volume, run_name=name, request={}, lora=lora, learn_rate=0.02)
        if strike:
            assert run_step("finetune", config, strike) == -signal.SIGKILL, log_of(config)
        assert run_step("finetune", config) == 0, log_of(config)
        weights.append((volume / name / "final/model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    final = volume / "whole/final"
    lines = read_lines(volume / "whole/metrics.jsonl")
    last = [line["eval_loss"] for line in lines if "eval_loss" in line][-1]
    assert loss_of(final, volume) == pytest.approx(last, rel=1e-5)
    base = AutoModelForCausalLM.from_pretrained(volume / "models/tiny")
    before = logits_of(base)
    adapted = logits_of(PeftModel.from_pretrained(base, final / "adapter"))
    merged = logits_of(AutoModelForCausalLM.from_pretrained(final))
    torch.testing.assert_close(adapted, merged, rtol=1e-4, atol=1e-5)
    assert (adapted - before).abs().max() > 0.01
    kept = json.loads((final / "adapter/adapter_config.json").read_text())
    assert kept["use_rslora"] == lora.get("rslora", False)
    assert kept["use_dora"] == lora.get("dora", False)


@pytest.mark.parametrize("stage", [2, 3])
def test_dora_and_whole_modules_are_the_same_when_spread(tmp_path: Path, stage: int) -> None:
    volume = make_volume(tmp_path, "neox")
    lora = {"dora": True, "modules_to_save": ["lm_head"]}
    losses = []
    for name, spread in (("alone", {}), ("spread", {"processes": 2, "zero_stage": stage})):
        gradients = 1 if spread else 2
        changes = {"run_name": name, "request": {}, "lora": lora, "learn_rate": 0.02, **spread}
        config = make_config(volume, gradients=gradients, epochs=1, **changes)
        assert run_step("finetune", config) == 0, log_of(config)
        lines = read_lines(volume / name / "metrics.jsonl")
        losses.append([line.get("loss", line.get("eval_loss")) for line in lines])
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


@pytest.mark.parametrize("architecture", ["gptj", "neox", "llama"])
def test_what_is_trained_is_counted_as_peft_makes_it(architecture: str) -> None:
    config = configuration(architecture)
    lora = LoraConfig(rank=4, target_modules="all-linear", dora=True)
    ends = {"gptj": ["wte"], "neox": ["lm_head"], "llama": ["lm_head"]}
    lora = dataclasses.replace(lora, modules_to_save=ends[architecture])
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        add_adapters(model, lora, "the model", seed=0)
    made = sum(p.numel() for p in model.parameters() if p.requires_grad)
    values = dataclasses.asdict(lora)
    assert count(config, values)["trained_parameters"] == made
    shape = ModelShape.from_config(config.to_dict())
    if architecture != "neox":  # one matrix makes its queries, keys and values
        assert adapter_parameters(shape, values) == made
    assert adapter_parameters(dataclasses.replace(shape, counted_adapters=made), values) == made
    whole = architecture != "gptj"
    assert setting_of(values) == {"trains_head": whole, "dora": True, "base_bits": 16}


def test_a_module_to_train_whole_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    lora = {"modules_to_save": ["embed_in", "wte"]}
    config = make_config(make_volume(tmp_path, "neox"), lora=lora)
    assert run_step("finetune", config) == 78
    said = log_of(config)
    assert "lora.modules_to_save names no module of the model (got 'wte')" in said
    assert "embed_in and lm_head" in said


def test_a_module_is_trained_whole_or_gets_an_adapter() -> None:
    both = {"target_modules": ["lm_head"], "modules_to_save": ["lm_head"]}
    with pytest.raises(RequestError, match=r"lora.modules_to_save names what .*got lm_head"):
        load_parameters(Parameters, {"run_name": "run", "lora": both})
    assert load_parameters(Parameters, {"run_name": "run", "lora": "{}"}).request["lora"] == {
        "rank": 8,
        "alpha": 16.0,
        "dropout": 0.0,
        "target_modules": [],
    }
