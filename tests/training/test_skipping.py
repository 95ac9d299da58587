"""Steps whose numbers are not finite: left out, named, and gone back from."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.training.forking import log_of, run_step
from tests.training.volume import make_config, make_volume, read_lines, write_store
from trainer.tokens.store import TokenStore


def poison(volume: Path, word: int, contexts: list[int]) -> None:
    """Make a word's embedding infinite, and put it into some contexts alone."""
    path = volume / "models" / "tiny" / "model.safetensors"
    weights = load_file(path)
    weights["transformer.wte.weight"][word] = float("inf")
    save_file(weights, path, metadata={"format": "pt"})
    store = TokenStore.open(volume / "tokens" / "tiny")
    ids, lengths = np.array(store.contexts), np.array(store.lengths)
    ids[ids == word] = 1
    ids[contexts, 2] = word
    shutil.rmtree(volume / "tokens")
    write_store(volume / "tokens" / "tiny", ids, lengths, store.manifest.num_train_contexts)


ENGINES = [(0, 1, "fp32"), (0, 2, "fp32"), (1, 2, "fp32"), (2, 2, "fp32"), (3, 2, "fp32")]
ENGINES += [(1, 1, "bf16"), (2, 2, "bf16"), (3, 2, "bf16")]


@pytest.mark.parametrize(("stage", "processes", "precision"), ENGINES)
def test_a_bad_step_is_left_out_and_named(
    tmp_path: Path, stage: int, processes: int, precision: str
) -> None:
    volume = make_volume(tmp_path)
    poison(volume, word=95, contexts=[6])
    changes = {"zero_stage": stage, "processes": processes, "gradients": 2 // processes}
    changes["precision"] = precision  # type: ignore[assignment]
    config = make_config(volume, no_shuffle=True, epochs=1, save_steps=0, **changes)
    assert run_step("finetune", config) == 0, log_of(config)
    [skipped] = read_lines(volume / "run" / "skipped.jsonl")
    assert skipped["step"] == 2 and skipped["contexts"] == [6, 7]  # its micro-batch
    assert skipped["documents"] == ["dataset/made-up.txt#7", "dataset/made-up.txt#8"]
    lines = read_lines(volume / "run" / "metrics.jsonl")
    losses = [line for line in lines if "loss" in line]
    assert [line["loss"] is None for line in losses] == [False, True, *[False] * 4]
    weights = load_file(volume / "run" / "final" / "model.safetensors")
    weights["transformer.wte.weight"][95] = 0
    assert all(torch.isfinite(w).all() for w in weights.values())
    assert "step 2 was left out" in log_of(config)


def test_after_three_bad_steps_it_goes_back_once_and_then_stops(tmp_path: Path) -> None:
    volume = make_volume(tmp_path)
    poison(volume, word=95, contexts=[8, 12, 16])  # steps 3 to 5
    config = make_config(volume, no_shuffle=True, epochs=1, save_steps=1)
    assert run_step("finetune", config) == 1
    log = log_of(config)
    assert "The run goes back to step-00000004, once." in log
    assert "take a lower learn_rate" in log
    assert log.count("\nstep 5 was left out") == 2
    assert run_step("finetune", config) == 1  # by a retry of what failed
    assert log_of(config).count("The run goes back") == log.count("The run goes back")
    assert log_of(config).count("\nstep 5 was left out") == 3
