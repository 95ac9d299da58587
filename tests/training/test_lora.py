"""Adapters are trained alone, and merged into the final model."""

import json
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from tests.training.forking import Strike, log_of, run_step
from tests.training.volume import VOCABULARY, make_config, make_model, make_volume, read_lines
from trainer.contract.sealed_folder import verify
from trainer.contract.topics import LoraConfig
from trainer.serving.adapter import SETTINGS, load_adapter
from trainer.training.engine.adapters import add_adapters

BASE = "base_model_name_or_path"
ENGINE = "trainer.training.engine.engine"


def test_lora_trains_adapters_alone_and_merges_them(tmp_path: Path) -> None:
    volume = make_volume(tmp_path)
    lora = {"rank": 4, "alpha": 8.0, "dropout": 0.1}
    base = load_file(volume / "models" / "tiny" / "model.safetensors")
    runs = []
    for name, strike in (("whole", None), ("broken", Strike(f"{ENGINE}:Engine.step", 7))):
        config = make_config(volume, run_name=name, request={}, lora=lora)
        if strike:
            assert run_step("finetune", config, strike) == -signal.SIGKILL
        assert run_step("finetune", config) == 0, log_of(config)
        runs.append(volume / name)
    weights = [load_file(run / "final" / "model.safetensors") for run in runs]
    assert all(torch.equal(weights[1][name], w) for name, w in weights[0].items())
    changed = {
        name.split(".")[-2] for name, w in weights[0].items() if not torch.equal(w, base[name])
    }
    assert changed == {"q_proj", "v_proj"}
    assert verify(runs[0] / "final") == []
    assert "Warning: " not in log_of(config)
    # The base by its name on the volume, wherever that is mounted.
    assert json.loads((runs[0] / "final/adapter" / SETTINGS).read_text())[BASE] == "models/tiny"
    beside, _ = load_adapter(str(volume), runs[0] / "final/adapter")
    ids = torch.arange(8)[None]
    torch.testing.assert_close(
        beside(ids).logits,
        AutoModelForCausalLM.from_pretrained(runs[0] / "final")(ids).logits,
    )
    from peft import PeftModel

    model = AutoModelForCausalLM.from_pretrained(volume / "models" / "tiny")
    merged = PeftModel.from_pretrained(model, runs[0] / "final" / "adapter").merge_and_unload()
    for name, weight in merged.state_dict().items():
        torch.testing.assert_close(weight, weights[0][name])
    [manifest] = (runs[0] / "checkpoints").glob("step-00000012/manifest.json")
    size = sum(f["bytes"] for f in json.loads(manifest.read_text())["files"].values())
    assert size < sum(w.numel() * 12 for w in base.values()) / 4


def make_tied(volume: Path) -> Path:
    """A volume with a Llama whose head is its embedding, as far from zero as a trained one."""
    make_volume(volume, "llama")
    model = make_model("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(20)
    model.save_pretrained(volume / "models" / "tiny")
    return volume


@pytest.mark.parametrize("layer", ["lm_head", "embed_tokens"])
def test_an_adapter_on_a_tied_layer_changes_one_end_alone(tmp_path: Path, layer: str) -> None:
    volume = make_tied(tmp_path)
    lora = {"rank": 4, "target_modules": ["q_proj", layer]}
    config = make_config(volume, lora=lora, learn_rate=0.02)
    assert run_step("finetune", config) == 0, log_of(config)
    config = {k: config[k] for k in ("volume", "run_name", "model", "tokens")}
    assert run_step("evaluate", config | {"sampling": {"prompt_tokens": 2}}) == 0, log_of(config)
    losses = [x["eval_loss"] for x in read_lines(volume / "run/metrics.jsonl") if "eval_loss" in x]
    report = json.loads((volume / "run/evaluation.json").read_text())
    assert report["loss"] == pytest.approx(losses[-1], rel=1e-5)
    assert abs(report["base_loss"] - report["loss"]) > 0.01  # else it would prove nothing
    merged = load_file(volume / "run/final/model.safetensors")
    assert not torch.equal(merged["lm_head.weight"], merged["model.embed_tokens.weight"])


def test_a_model_that_peft_does_not_know_gets_adapters_on_all_layers_but_the_head(
    tmp_path: Path,
) -> None:
    config = AutoConfig.for_model(
        "olmo2",
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
    )
    adapted = add_adapters(AutoModelForCausalLM.from_config(config), LoraConfig(), "tiny", 0)
    with_adapter = {n.split(".")[-4] for n, _ in adapted.named_parameters() if "lora_A" in n}
    attention, feed_forward = (
        {"q_proj", "k_proj", "v_proj", "o_proj"},
        {"gate_proj", "up_proj", "down_proj"},
    )
    assert with_adapter == attention | feed_forward


def test_mamba_gets_adapters_where_peft_takes_them() -> None:
    config = AutoConfig.for_model(
        "mamba", vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=1, state_size=4
    )
    adapted = add_adapters(AutoModelForCausalLM.from_config(config), LoraConfig(), "tiny", 0)
    with_adapter = {n.split(".")[-4] for n, _ in adapted.named_parameters() if "lora_A" in n}
    assert with_adapter == {"in_proj", "x_proj", "dt_proj"}


def test_lora_names_what_it_cannot_adapt(tmp_path: Path) -> None:
    config = make_config(make_volume(tmp_path), lora={"target_modules": ["nothing_like_it"]})
    assert run_step("finetune", config) == 78
    assert "Name layers of the model in lora's target_modules" in log_of(config)
