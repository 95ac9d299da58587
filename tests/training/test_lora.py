"""Adapters are trained alone, and merged into the final model."""

import json
import signal
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.training.forking import Strike, log_of, run_step
from tests.training.volume import make_config, make_volume
from trainer.checkpoints import verify

ENGINE = "trainer.training.engine"


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
    from peft import PeftModel

    model = AutoModelForCausalLM.from_pretrained(volume / "models" / "tiny")
    merged = PeftModel.from_pretrained(model, runs[0] / "final" / "adapter").merge_and_unload()
    for name, weight in merged.state_dict().items():
        torch.testing.assert_close(weight, weights[0][name])
    [manifest] = (runs[0] / "checkpoints").glob("step-00000012/manifest.json")
    size = sum(f["bytes"] for f in json.loads(manifest.read_text())["files"].values())
    assert size < sum(w.numel() * 12 for w in base.values()) / 4


def test_lora_names_what_it_cannot_adapt(tmp_path: Path) -> None:
    config = make_config(make_volume(tmp_path), lora={"target_modules": ["nothing_like_it"]})
    assert run_step("finetune", config) == 78
    assert "Name layers of the model in lora's target_modules" in log_of(config)
