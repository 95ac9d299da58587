"""A run that was killed and went on is the run that was never stopped, byte for byte."""

import itertools
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.training.forking import Strike, log_of, run_step
from tests.training.volume import make_config, make_volume, read_lines
from trainer.contract.checkpoints import verify_run
from trainer.contract.sealed_folder import read_manifest
from trainer.training.limits.stopping import too_late
from trainer.training.save.records import MEASURED

ENGINE, LOOKING, SAVING = (
    f"trainer.training.{name}"
    for name in ("engine.engine", "record.validate_and_sample", "save.saving")
)

# In order: each begins where the one before left off. 21 contexts, 4 a step: 6 steps an epoch.
PLACES = [
    Strike("trainer.__main__:load_step_config", signum=signal.SIGTERM),
    Strike("trainer.training.process:base_model"),
    # Called where transformers catches every exception.
    Strike("transformers.tokenization_utils_base:cached_file", 2, signum=signal.SIGTERM),
    Strike(f"{ENGINE}:Engine.loss", 3),  # in the first forward passes, nothing saved
    Strike(f"{SAVING}:write_tensors", 1),
    Strike(f"{SAVING}:seal", 1),
    Strike(f"{SAVING}:seal", 1, after=True),  # sealed, not verified, not pruned
    Strike("trainer.training.process:restore"),  # while loading a checkpoint
    Strike(f"{ENGINE}:Engine.backward", 1, after=True),  # between micro-batches
    Strike(f"{LOOKING}:sample", 1, signum=signal.SIGTERM),  # at step 6, an epoch's edge
    Strike(f"{ENGINE}:Engine.step", 1, signum=signal.SIGTERM),  # saves in epoch 2
    Strike(
        "trainer.training.engine.adam:ClippingAdamW.step", 1, after=True
    ),  # weights changed, nothing else
    Strike(f"{LOOKING}:held_out_loss", 1),
    Strike(f"{LOOKING}:held_out_loss", 1, signum=signal.SIGTERM),
    Strike(f"{ENGINE}:Engine.loss", 2, after=True),
    Strike("trainer.contract.checkpoints:shutil.rmtree", 1),  # a pruned one half deleted
    Strike("trainer.training.save.final:golden_answers", 1),
    Strike("trainer.training.save.final:seal", 1),
]


def comparable(run: Path) -> dict[str, Any]:
    """What two runs have to agree in: all but the clock."""
    metrics = [
        {k: v for k, v in line.items() if k not in MEASURED}
        for line in read_lines(run / "metrics.jsonl")
    ]
    tensors = (run / "final").rglob("*.safetensors")
    return {
        "metrics": metrics,
        "samples": read_lines(run / "samples.jsonl"),
        "weights": {str(p.relative_to(run)): p.read_bytes() for p in tensors},
        "golden": (run / "final" / "golden.json").read_bytes(),
    }


def unbroken(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    return _config(tmp_path / "unbroken", **changes)


def _config(root: Path, **changes: Any) -> dict[str, Any]:
    architecture = changes.pop("architecture", "gptj")
    volume = make_volume(root, architecture, dropout=changes.pop("dropout", 0.2))
    (volume / "prompts.txt").write_text("w3 w4\\nw5\n", encoding="utf-8")
    sampling = {"prompt_tokens": 4, "prompt_samples": 2}
    return make_config(volume, **{"prompt_file": "prompts.txt", "sampling": sampling} | changes)


def assert_same(broken: dict[str, Any], whole: dict[str, Any]) -> None:
    runs = [Path(config["volume"]) / "run" for config in (broken, whole)]
    found, expected = (comparable(run) for run in runs)
    assert found["metrics"] == expected["metrics"]
    steps = [line["step"] for line in found["metrics"] if "loss" in line]
    last = read_manifest(runs[0] / "final").about["step"]
    assert steps == list(range(1, last + 1))
    assert found == expected
    assert not any(verify_run(runs[0]).values())


def kill_and_go_on(config: dict[str, Any], strikes: list[Strike]) -> None:
    for strike in strikes:
        code = run_step("finetune", config, strike)
        expected = 143 if strike.signum == signal.SIGTERM else -signal.SIGKILL
        assert code == expected, f"{strike}: {log_of(config)[-3000:]}"
    assert run_step("finetune", config) == 0, log_of(config)[-3000:]


def test_killed_at_every_place_it_is_the_unbroken_run(tmp_path: Path) -> None:
    whole, broken = unbroken(tmp_path), _config(tmp_path / "broken")
    for config in (whole, broken):
        config["save_steps"] = 3
    assert run_step("finetune", whole) == 0, log_of(whole)[-3000:]
    kill_and_go_on(broken, PLACES)
    assert_same(broken, whole)


def test_a_run_without_checkpoints_within_has_a_curve_and_the_same_weights(tmp_path: Path) -> None:
    whole, broken = unbroken(tmp_path, save_steps=500), _config(tmp_path / "b", save_steps=500)
    plain = _config(tmp_path / "plain", save_steps=0)
    for config in (whole, plain):
        assert run_step("finetune", config) == 0, log_of(config)[-3000:]
    strikes = [Strike(f"{ENGINE}:Engine.step", 5, after=True)]
    strikes += [Strike(f"{ENGINE}:Engine.step", 3, signum=signal.SIGTERM, after=True)]
    kill_and_go_on(broken, strikes)
    assert_same(broken, whole)
    found, expected = (comparable(Path(c["volume"]) / "run") for c in (whole, plain))
    points = [line["step"] for line in found["metrics"] if "eval_loss" in line]
    assert points == [1, 2, 3, 4, 6, 7, 8, 9, 10, 12]
    assert [line["step"] for line in expected["metrics"] if "eval_loss" in line] == [12]
    common = [m for m in found["metrics"] if "loss" in m or m["step"] == 12]
    assert common == expected["metrics"]
    assert all(found[name] == expected[name] for name in ("weights", "samples", "golden"))


def test_one_process_resumes_exactly_in_the_store_s_order(tmp_path: Path) -> None:
    changes = {"zero_stage": 3, "gradients": 1, "batch_size": 4, "no_shuffle": True}
    whole, broken = unbroken(tmp_path, **changes), _config(tmp_path / "broken", **changes)
    assert run_step("finetune", whole) == 0, log_of(whole)[-3000:]
    strikes = [Strike(f"{ENGINE}:Engine.step", 6, after=True)]
    strikes += [Strike(f"{ENGINE}:Engine.loss", 3, signum=signal.SIGTERM)]
    kill_and_go_on(broken, strikes)
    assert_same(broken, whole)
    assert "zero_stage 3 splits nothing over one process" in log_of(broken)


def test_bf16_keeps_what_16_bits_would_lose(tmp_path: Path) -> None:
    changes = {"precision": "bf16", "zero_stage": 3, "learn_rate": 1e-3}
    whole, broken = unbroken(tmp_path, **changes), _config(tmp_path / "broken", **changes)
    assert run_step("finetune", whole) == 0, log_of(whole)[-3000:]
    kill_and_go_on(broken, [Strike(f"{ENGINE}:Engine.step", 6, after=True)])
    assert_same(broken, whole)
    # The checkpoint has fp32 weights: between those of bf16, where small steps add up.
    [path] = (tmp_path / "unbroken/run/checkpoints/step-00000012").glob("*.safetensors")
    weights = [w for name, w in load_file(path).items() if name.startswith("weight/")]
    assert not all(torch.equal(w, w.bfloat16().float()) for w in weights)


def test_adapters_resume_exactly_and_slow_saves_are_warned_of(tmp_path: Path) -> None:
    lora = {"rank": 2, "dropout": 0.1, "target_modules": []}
    changes = {"gradients": 5, "batch_size": 1, "lora": lora, "grace_seconds": 1e-6}
    whole, broken = unbroken(tmp_path, **changes), _config(tmp_path / "broken", **changes)
    assert run_step("finetune", whole) == 0, log_of(whole)[-3000:]
    strikes = [Strike(f"{ENGINE}:Engine.step", 6, after=True), Strike(f"{SAVING}:seal", 1)]
    kill_and_go_on(broken, strikes)
    assert_same(broken, whole)
    assert "steps since the last one would be done again" in log_of(whole)


def test_the_time_after_a_signal_has_to_do_for_the_step_and_what_is_under_way() -> None:
    assert not too_late(step_seconds=300, save_seconds=0, is_saving=True, grace_seconds=120)
    assert not too_late(step_seconds=60, save_seconds=50, is_saving=False, grace_seconds=120)
    said = too_late(step_seconds=60, save_seconds=50, is_saving=True, grace_seconds=120)
    assert said.startswith("a step and a checkpoint after the one running take 160 s, but 120 s")
    said = too_late(step_seconds=80, save_seconds=50, is_saving=False, grace_seconds=120)
    assert said.startswith("a step and a checkpoint take 130 s")


ENGINES = [("llama", 0), ("gptj", 1), ("neox", 2), ("gptj", 3)]


@pytest.mark.parametrize(("architecture", "stage"), ENGINES)
def test_two_processes_resume_exactly(tmp_path: Path, architecture: str, stage: int) -> None:
    changes = {"zero_stage": stage, "gradients": 1, "processes": 2, "architecture": architecture}
    if stage == 1:  # the last step of each epoch has one context
        changes |= {"gradients": 5, "batch_size": 1, "epochs": 4, "no_shuffle": True}
    whole, broken = unbroken(tmp_path, **changes), _config(tmp_path / "broken", **changes)
    assert run_step("finetune", whole) == 0, log_of(whole)[-3000:]
    strikes = [
        Strike(f"{SAVING}:write_tensors", 1, rank=1),  # one process dies while it writes
        Strike(f"{ENGINE}:Engine.step", 6, signum=signal.SIGTERM),
        Strike(f"{ENGINE}:Engine.loss", 2, signum=signal.SIGKILL),
    ]
    codes = [run_step("finetune", broken, strike) for strike in strikes]
    assert codes == [1, 143, -signal.SIGKILL], log_of(broken)[-3000:]
    assert run_step("finetune", broken) == 0, log_of(broken)[-3000:]
    assert_same(broken, whole)


def test_a_process_whose_launcher_died_while_it_was_loading_trains_nothing(tmp_path: Path) -> None:
    # The launcher is gone before the process has asked to die with it.
    start = (
        "import os, sys, time\n"
        "launcher = os.getpid()\n"
        "if os.fork(): os._exit(0)\n"
        "while os.getppid() == launcher: time.sleep(0.01)\n"
        "launch = ['-m', 'trainer.training.processes.launch']\n"
        "words = [*launch, sys.argv[1], '0', '1', str(launcher)]\n"
        "os.execv(sys.executable, [sys.executable, *words])\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", start, str(tmp_path)], capture_output=True, text=True
    )  # returns when nobody holds its output any more
    assert (ran.stdout, ran.stderr) == ("", "")  # without a word of the job that is not there
    assert list(tmp_path.iterdir()) == []


def test_other_processes_and_stages_continue_within_rounding(tmp_path: Path) -> None:
    drops = unbroken(tmp_path, zero_stage=0)
    whole = drops | {"model": _without_dropout(Path(drops["volume"]))}
    broken = whole | {"run_name": "broken", "request": {"run_name": "broken"}}
    assert run_step("finetune", whole) == 0, log_of(whole)[-3000:]
    kinds = [(1, 2), (2, 3), (2, 0), (1, 3), (2, 1)]
    for processes, stage in kinds:
        broken |= {"processes": processes, "zero_stage": stage}
        strike = Strike(f"{ENGINE}:Engine.step", 2, signum=signal.SIGTERM)
        assert run_step("finetune", broken, strike) == 143, log_of(broken)[-3000:]
    assert "losses agree to about 1e-4" in log_of(broken)
    assert "dropout" not in log_of(broken)
    assert run_step("finetune", broken) == 0, log_of(broken)[-3000:]
    volume = Path(whole["volume"])
    lines = [read_lines(volume / name / "metrics.jsonl") for name in ("run", "broken")]
    for ours, theirs in itertools.zip_longest(*lines):
        assert ours["step"] == theirs["step"]
        name = "loss" if "loss" in ours else "eval_loss"
        assert theirs[name] == pytest.approx(ours[name], abs=1e-4)
    # Masks of dropout differ from process to process, so nothing is promised of the losses.
    drops |= {"run_name": "drops", "request": {"run_name": "drops"}}
    for processes in (1, 2):
        strike = Strike(f"{ENGINE}:Engine.step", 2, signum=signal.SIGTERM)
        assert run_step("finetune", drops | {"processes": processes}, strike) == 143
    assert "dropout draws anew for each process" in log_of(drops)


def _without_dropout(volume: Path) -> str:
    plain = make_volume(volume / "plain")
    return str((plain / "models" / "tiny").relative_to(volume))
