"""What the finetune step makes, refuses, reuses and says."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.training.forking import Strike, ended_with, log_of, run_forked, run_step
from tests.training.volume import CONTEXT, make_config, make_volume, read_lines, write_store
from trainer.contract.checkpoints import name_of
from trainer.contract.events import parse_event
from trainer.contract.sealed_folder import read_manifest, verify
from trainer.tokens.store import TokenStore
from trainer.training.verify_resume import main as rehearse

ENGINE = "trainer.training.engine.engine"


def outcome(config: dict[str, Any]) -> dict[str, Any]:
    path = Path(config["volume"]) / config["run_name"] / "outcomes" / "finetune.json"
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The config of a run that ended well."""
    config = make_config(make_volume(tmp_path_factory.mktemp("done")))
    assert run_step("finetune", config) == 0, log_of(config)
    return config


def test_final_is_an_ordinary_model_folder(done: dict[str, Any]) -> None:
    final = Path(done["volume"]) / "run" / "final"
    assert verify(final) == []
    model = AutoModelForCausalLM.from_pretrained(final, attn_implementation="eager")
    assert AutoTokenizer.from_pretrained(final)("w5 w6")["input_ids"] == [5, 6]
    golden = json.loads((final / "golden.json").read_text())
    for answer in golden["prompts"]:
        ids = torch.tensor([answer["ids"]])
        log_probs = model(input_ids=ids).logits[0].log_softmax(-1)
        found = log_probs[:-1].gather(1, ids[0, 1:, None])[:, 0]
        torch.testing.assert_close(found, torch.tensor(answer["log_probs"]))
        assert int(log_probs[-1].argmax()) == answer["next_id"]
    assert "loss on held-out text" in (final / "README.md").read_text()


def test_training_learns_what_is_in_the_text(done: dict[str, Any]) -> None:
    lines = read_lines(Path(done["volume"]) / "run" / "metrics.jsonl")
    held_out = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert len(held_out) == 3 and held_out[-1] < held_out[0]
    result = outcome(done)["result"]
    assert result["eval_loss"] == held_out[-1]
    assert result["steps"] == 12 and result["final"] == "run/final"
    assert result["resumed_from"] is None


def test_every_token_but_padding_is_trained_on_once_an_epoch(done: dict[str, Any]) -> None:
    store = TokenStore.open(Path(done["volume"]) / "tokens" / "tiny")
    once = store.trained_tokens(np.arange(store.manifest.num_train_contexts))
    assert outcome(done)["result"]["tokens"] == 2 * once


def test_event_lines_carry_progress_and_the_lines_of_metrics(done: dict[str, Any]) -> None:
    events = [e for e in map(parse_event, log_of(done).splitlines()) if e]
    metrics = [e.fields for e in events if e.kind == "metric"]
    assert metrics == read_lines(Path(done["volume"]) / "run" / "metrics.jsonl")
    last = [e.fields for e in events if e.kind == "progress"][-1]
    assert (last["done"], last["total"], last["unit"]) == (12, 12, "steps")


def test_a_finished_run_is_reused_without_torch(done: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(done))
    code = (
        "import sys; from trainer.__main__ import main; "
        f"code = main(['finetune', {str(path)!r}]); "
        "print(code, 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[-1] == "0 False False"
    assert run_step("finetune", done) == 0
    assert ended_with(done)["reused"] is True


def test_another_request_for_the_same_run_is_refused(done: dict[str, Any]) -> None:
    other = done | {"request": {"run_name": "run", "epochs": 9}, "epochs": 9}
    assert run_step("finetune", other) == 78
    assert "epochs was 2, is 9" in log_of(done)


def test_no_resume_puts_the_old_run_aside(tmp_path: Path) -> None:
    config = make_config(make_volume(tmp_path), epochs=1, attempt="first")
    assert run_step("finetune", config) == 0
    again = config | {"no_resume": True, "attempt": "second"}
    strike = Strike("trainer.training.save.final:golden_answers", signum=signal.SIGTERM)
    assert run_step("finetune", again, strike) == 143
    assert len(list((tmp_path / "run" / "replaced").iterdir())) == 1
    assert run_step("finetune", again) == 0  # the same attempt continues
    assert len(list((tmp_path / "run" / "replaced").iterdir())) == 1
    assert "resumes from step 6 of 6" in log_of(config)


def test_a_context_longer_than_the_model_takes_is_refused(tmp_path: Path) -> None:
    volume = make_volume(tmp_path)
    ids = np.ones((8, CONTEXT * 4), dtype="<u2")
    shutil.rmtree(volume / "tokens")
    write_store(volume / "tokens" / "tiny", ids, np.full(8, CONTEXT * 4, dtype="<u4"), 8)
    assert run_step("finetune", make_config(volume)) == 78
    assert "context is longer than the model can take (got 64)" in log_of(make_config(volume))
    assert not (volume / "run").exists()


@pytest.mark.parametrize("asked", [{"force_fp16": True}, {"precision": "fp16"}])
def test_fp16_without_a_gpu_is_refused(tmp_path: Path, asked: dict[str, Any]) -> None:
    config = make_config(make_volume(tmp_path), **asked)
    assert run_step("finetune", config) == 78
    assert f"{next(iter(asked))} asks for fp16" in ended_with(config)["message"]


def test_wide_token_ids_train_the_same(tmp_path: Path) -> None:
    narrow, wide = make_volume(tmp_path / "narrow"), make_volume(tmp_path / "wide", wide=True)
    losses = []
    for volume in (narrow, wide):
        config = make_config(volume, epochs=1)
        assert run_step("finetune", config) == 0, log_of(config)
        losses.append([line.get("loss") for line in read_lines(volume / "run" / "metrics.jsonl")])
    assert losses[0] == losses[1]


def test_batches_of_another_shape_make_the_same_steps(tmp_path: Path) -> None:
    volume = make_volume(tmp_path)
    curves = []
    for batch_size, gradients in [(4, 1), (1, 4), (2, 2)]:
        name = f"run-{batch_size}"
        changes = {"run_name": name, "request": {}, "epochs": 1}
        config = make_config(volume, batch_size=batch_size, gradients=gradients, **changes)
        assert run_step("finetune", config) == 0, log_of(config)
        lines = read_lines(volume / name / "metrics.jsonl")
        curves.append([line.get("loss", line.get("eval_loss")) for line in lines])
    assert curves[1] == pytest.approx(curves[0], abs=1e-5)
    assert curves[2] == pytest.approx(curves[0], abs=1e-5)


def test_checkpoints_by_the_clock_say_the_loss_of_their_own_weights(tmp_path: Path) -> None:
    changes = {"save_steps": 0, "processes": 2, "gradients": 1, "zero_stage": 2, "epochs": 1}
    by_step = make_config(make_volume(tmp_path / "by-step"), **changes)
    by_clock = make_config(make_volume(tmp_path / "by-clock"), **changes)
    by_clock["checkpoints"] = {"every_minutes": 1e-9, "keep_last": 3, "keep_best": False}
    assert run_step("finetune", by_step) == 0, log_of(by_step)
    assert run_step("finetune", by_clock, Strike(f"{ENGINE}:Engine.loss", 5)) == -signal.SIGKILL
    assert run_step("finetune", by_clock) == 0, log_of(by_clock)
    runs = [Path(config["volume"]) / "run" for config in (by_step, by_clock)]
    plain, clocked = (read_lines(run / "metrics.jsonl") for run in runs)
    losses = {line["step"]: line["eval_loss"] for line in clocked if "eval_loss" in line}
    assert [x["step"] for x in clocked if "eval_loss" in x] == list(range(1, 7))
    assert [x["loss"] for x in clocked if "loss" in x] == [x["loss"] for x in plain if "loss" in x]
    kept = {n: runs[1] / "checkpoints" / name_of(n) for n in (4, 5, 6)}
    for step, place in kept.items():
        assert read_manifest(place).about["eval_loss"] == losses[step]
    weights = [(run / "final" / "model.safetensors").read_bytes() for run in runs]
    assert weights[0] == weights[1]
    shutil.rmtree(kept[5])  # what resumes from 4 has no clock that would have it validate there
    code, said = run_forked(runs[1].parent, lambda: rehearse([str(runs[1].parent), "run"]))
    assert code == 0 and "resumes exactly: from step 4 to step 6" in said, said


def test_samples_are_of_the_same_model_in_every_stage(tmp_path: Path) -> None:
    volume = make_volume(tmp_path)
    (volume / "prompts.txt").write_text("w3 w4\n", encoding="utf-8")
    changes = {"processes": 2, "gradients": 1, "epochs": 1, "prompt_file": "prompts.txt"}
    sampling = {"prompt_tokens": 8, "prompt_samples": 2}
    found = []
    for stage in (0, 3):
        name = f"stage-{stage}"
        config = make_config(volume, run_name=name, request={}, zero_stage=stage, **changes)
        assert run_step("finetune", config | {"sampling": sampling}) == 0, log_of(config)
        found.append(read_lines(volume / name / "samples.jsonl"))
    assert [line["step"] for line in found[0]] == [0, 4, 6]
    assert found[0] == found[1]


def test_no_samples_are_written_where_none_are_wanted(tmp_path: Path) -> None:
    volume = make_volume(tmp_path)
    (volume / "prompts.txt").write_text("w3 w4\n", encoding="utf-8")
    config = make_config(volume, epochs=1, prompt_file="prompts.txt")
    assert run_step("finetune", config | {"sampling": {"prompt_samples": 0}}) == 0, log_of(config)
    assert not list(read_lines(volume / "run" / "samples.jsonl"))


def test_curves_have_each_step_once_after_going_on(tmp_path: Path) -> None:
    volume = make_volume(tmp_path)
    config = make_config(volume)
    place = volume / "logs" / "run" / "tensorboard"
    run_step("finetune", config, Strike(f"{ENGINE}:Engine.step", 7))
    shutil.rmtree(place)  # made anew from metrics.jsonl
    run_step("finetune", config, Strike(f"{ENGINE}:Engine.step", 7))  # step 11, saved at 8
    assert run_step("finetune", config) == 0, log_of(config)
    assert len(list(place.iterdir())) == 2
    curves = EventAccumulator(str(place)).Reload()
    lines = [x for x in read_lines(volume / "run" / "metrics.jsonl") if "loss" in x]
    found = curves.Scalars("train/loss")
    assert [event.step for event in found] == list(range(1, 13))
    assert [event.value for event in found] == pytest.approx([x["loss"] for x in lines])
    assert [event.step for event in curves.Scalars("train/eval_loss")] == [4, 8, 12]
