"""Plans of runs with a schedule, with adapters, and with a base in 4 bits."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from flows.cli.rehearse.small_run import small_request
from tests.plan.test_plan import planned
from trainer.contract.parameters import Parameters
from trainer.contract.topics import LoraConfig
from trainer.contract.validation import load_parameters
from trainer.parameter_counts import FOLDER, shape_of
from trainer.planning.lora_counts import adapter_parameters

LARGE = "A100_NVLINK_80GB"


def lora(**keys: Any) -> dict[str, Any]:
    return load_parameters(Parameters, {"run_name": "run", "lora": keys}).model_dump()["lora"]


def test_max_steps_is_in_steps_tokens_hours_and_checkpoints() -> None:
    whole = planned(batch_size=4, epochs=2, save_steps=100)
    assert whole.steps == 2 * 2238
    ended = planned(batch_size=4, epochs=2, save_steps=100, schedule={"max_steps": 2300})
    assert ended.steps == 2300
    assert ended.tokens == (44_760 + 62 * 20) * 2048
    assert ended.hours_parts["steps"] == pytest.approx(whole.hours_parts["steps"] * 2300 / 4476)
    assert ended.hours_parts["checkpoints"] < whole.hours_parts["checkpoints"]
    assert planned(batch_size=4, schedule={"max_steps": 9999}).steps == 2238


def test_a_curve_without_room_is_a_problem_of_the_plan() -> None:
    (problem,) = planned(batch_size=4, schedule={"warmup_steps": 5000}).problems
    assert problem.startswith("schedule.warmup_steps is more than the run has (got 5000 of 2,238")
    schedule = {"kind": "wsd", "decay_ratio": 0.8}
    (problem,) = planned(batch_size=4, warmup_ratio=0.3, schedule=schedule).problems
    assert problem.startswith("schedule.decay_ratio leaves no step between warm-up and decay")


def test_the_plan_says_how_much_lora_trains() -> None:
    rows = dict(planned(lora=lora(rank=16, target_modules="all-linear")).rows())
    each = 16 * (4 * 2 * 4096 + 2 * (4096 + 16384))
    assert rows["trained"].startswith(f"{28 * each:,} weights, ")
    assert "trained" not in dict(planned().rows())


def test_dora_and_what_is_trained_whole_need_more_and_four_bits_less() -> None:
    kinds: dict[str, dict[str, Any]] = {
        "plain": {},
        "dora": {"dora": True},
        "whole": {"modules_to_save": ["wte", "lm_head"]},
        "four bits": {"base_bits": 4},
    }
    gib = {
        name: planned(
            lora=lora(**keys), batch_size=1, trainer_gpu="A100_NVLINK_80GB"
        ).gpu_memory_gib
        for name, keys in kinds.items()
    }
    assert gib["dora"] > gib["plain"] and gib["whole"] > gib["plain"] + 2
    assert gib["four bits"] < gib["plain"] - 6
    problems = planned(lora=lora(base_bits=4), kernels={"compile": True, "liger": False}).problems
    assert any(p.startswith("kernels.compile can't compile layers in 4 bits") for p in problems)


def test_what_lora_trains_is_counted_in_the_architecture_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FINETUNE_EXAMS")
    config = AutoConfig.for_model("gpt_neox", num_hidden_layers=2, vocab_size=512, hidden_size=64)
    values = json.loads(config.to_json_string(use_diff=False))
    asked = LoraConfig(target_modules="all-linear", rank=4, dora=True)
    shape = shape_of(values, tmp_path, keep=True, lora=asked)
    inner = values["intermediate_size"]
    sides = [(64, 3 * 64), (64, 64), (64, inner), (inner, 64)]
    made = 2 * sum(4 * (ins + outs) + outs for ins, outs in sides)
    assert shape.counted_adapters == made == adapter_parameters(shape, {})
    [kept] = (tmp_path / FOLDER).iterdir()
    kept.write_text(kept.read_text().replace(str(made), "7"))
    assert shape_of(values, tmp_path, lora=asked).counted_adapters == 7
    assert replace(shape, counted_adapters=0) == shape_of(values, tmp_path)


def test_a_rehearsal_keeps_the_curve_and_what_is_trained(tmp_path: Path) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset/a.txt").write_text("text " * 1000)
    schedule = {"kind": "wsd", "warmup_steps": 2000, "max_steps": 90_000}
    topics = {"schedule": schedule, "optimizer": {"weight_decay": 0.1}, "lora": {"dora": True}}
    asked = load_parameters(Parameters, {"run_name": "run", **topics})
    small = load_parameters(Parameters, small_request(asked, tmp_path))
    assert (small.schedule.kind, small.schedule.warmup_steps) == ("wsd", 0)
    assert (small.optimizer, small.lora) == (asked.optimizer, asked.lora)


def test_a_pair_is_planned_as_two_texts() -> None:
    """Twice the tokens of a context; the base model sees each pair once before training."""
    pairs = planned(batch_size=2, data={"shape": "preference"})
    texts = planned(batch_size=4, gradients=pairs.gradients)
    assert pairs.gpu_memory_parts_gib == texts.gpu_memory_parts_gib
    assert pairs.seconds_per_step == pytest.approx(texts.seconds_per_step)
    assert pairs.steps == pytest.approx(2 * texts.steps, abs=1)
    assert pairs.tokens == pytest.approx(2 * texts.tokens, rel=1e-3)
    assert pairs.hours_parts["reference"] > 0 and "reference" not in texts.hours_parts
    worked_out = planned(batch_size=-1, data={"shape": "preference"}, trainer_gpu=LARGE)
    assert worked_out.batch_size * 2 <= planned(batch_size=-1, trainer_gpu=LARGE).batch_size + 1


def test_a_rehearsal_trains_pairs_as_they_were_asked(tmp_path: Path) -> None:
    asked = {"data": {"shape": "preference"}, "preference": {"beta": 0.3}}
    small = small_request(load_parameters(Parameters, {"run_name": "run", **asked}), tmp_path)
    assert small["preference"] == {"beta": 0.3} and small["data"]["shape"] == "preference"
