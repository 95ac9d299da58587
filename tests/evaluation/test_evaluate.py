"""The evaluate step: exact losses of both models, samples, one report."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.training.forking import ended_with, log_of, run_step
from tests.training.volume import make_config, make_volume, write_store
from trainer.contract.sealed_folder import read_manifest, seal
from trainer.evaluation.prompts import beginnings
from trainer.tokens.store import TokenStore


def evaluate_config(volume: Path, **changes: Any) -> dict[str, Any]:
    sampling = {"prompt_tokens": 6, "prompt_samples": 2}
    config = {
        "volume": str(volume),
        "run_name": "run",
        "model": "models/tiny",
        "tokens": "tokens/tiny",
        "sampling": sampling,
    }
    return config | changes


def report_of(volume: Path) -> dict[str, Any]:
    return json.loads((volume / "run" / "evaluation.json").read_text())


def outcome_of(volume: Path) -> dict[str, Any]:
    return json.loads((volume / "run" / "outcomes" / "evaluate.json").read_text())


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume with a finished run."""
    volume = make_volume(tmp_path_factory.mktemp("evaluate"), "neox")
    config = make_config(volume, epochs=4)
    assert run_step("finetune", config) == 0, log_of(config)
    return volume


def exact_loss(folder: Path, store: TokenStore) -> float:
    """The mean over all held-out tokens, one context at a time, by transformers alone."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    total, count = 0.0, 0
    for index in range(store.manifest.num_train_contexts, store.manifest.num_contexts):
        length = int(store.lengths[index])
        ids = torch.tensor([store.contexts[index, :length].tolist()])
        total += model(input_ids=ids, labels=ids).loss.item() * (length - 1)
        count += length - 1
    return total / count


@pytest.mark.parametrize("batch_size", [1, 3])
def test_losses_are_exact_token_means_whatever_the_batch(volume: Path, batch_size: int) -> None:
    (volume / "run" / "evaluation.json").unlink(missing_ok=True)
    config = evaluate_config(volume, batch_size=batch_size)
    assert run_step("evaluate", config) == 0, log_of(config, "evaluate")
    report, store = report_of(volume), TokenStore.open(volume / "tokens" / "tiny")
    assert report["base_loss"] == pytest.approx(exact_loss(volume / "models" / "tiny", store), 1e-5)
    assert report["loss"] == pytest.approx(exact_loss(volume / "run" / "final", store), 1e-5)
    assert report["perplexity"] == pytest.approx(math.exp(report["loss"]))
    assert report["loss"] < report["base_loss"]
    assert report["contexts"] == 4


def test_both_models_write_after_the_same_prompts(volume: Path) -> None:
    (volume / "prompts.txt").write_text("w4 w5\n\nw6\n")
    config = evaluate_config(volume, prompt_file="prompts.txt")
    assert run_step("evaluate", config) == 0, log_of(config, "evaluate")
    samples = report_of(volume)["samples"]
    assert [s["prompt"] for s in samples] == ["w4 w5", "w6"]
    assert all(len(s["base"]) == len(s["finetuned"]) == 2 for s in samples)
    assert outcome_of(volume)["result"]["samples"] == 4
    assert "w4 w5" in (volume / "run" / "evaluation.md").read_text()


@pytest.mark.parametrize("none", [{"prompt_tokens": 0}, {"prompt_samples": 0}])
def test_no_tokens_or_no_samples_mean_that_no_text_is_written(
    volume: Path, none: dict[str, int]
) -> None:
    (volume / "prompts.txt").write_text("w4 w5\n")
    config = evaluate_config(volume, prompt_file="prompts.txt", sampling=none)
    assert run_step("evaluate", config) == 0, log_of(config, "evaluate")
    report = report_of(volume)
    assert report["samples"] == []
    assert report["loss"] < report["base_loss"]
    assert outcome_of(volume)["result"]["samples"] == 0


def test_the_same_comparison_is_not_made_twice(volume: Path) -> None:
    config = evaluate_config(volume, random_seed=5)
    assert run_step("evaluate", config) == 0
    report = report_of(volume)
    assert ended_with(config, "evaluate")["reused"] is False
    assert run_step("evaluate", config) == 0
    assert ended_with(config, "evaluate")["reused"] is True
    assert report_of(volume) == report
    assert run_step("evaluate", config | {"random_seed": 6}) == 0
    assert ended_with(config, "evaluate")["reused"] is False


def test_without_held_out_text_it_says_so(tmp_path: Path) -> None:
    volume = make_volume(tmp_path, held_out=0)
    config = make_config(volume, epochs=1)
    assert run_step("finetune", config) == 0, log_of(config)
    evaluate = evaluate_config(volume)
    assert run_step("evaluate", evaluate) == 0, log_of(evaluate, "evaluate")
    assert outcome_of(volume)["result"]["loss"] is None
    assert "there are no held-out contexts" in log_of(evaluate, "evaluate")


def test_a_missing_prompt_file_is_refused_by_name(volume: Path) -> None:
    config = evaluate_config(volume, prompt_file="nowhere.txt")
    assert run_step("evaluate", config) == 78
    assert "prompt_file can't be read (got 'nowhere.txt'" in log_of(config, "evaluate")


def test_samples_go_on_from_words_where_there_are_some(tmp_path: Path) -> None:
    ruled, dust, snow = ["====", "----"], ["dust", "rose"], ["snow", "fell"]
    words = {word: index for index, word in enumerate(["<eot>", *ruled, *dust, *snow])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<eot>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    contexts = [dust, ruled, dust, ruled, ruled, snow, dust]  # the first is trained on
    ids = np.array([[words[word] for word in context] for context in contexts], "<u2")
    write_store(tmp_path / "store", ids, np.full(len(ids), 2, "<u4"), 1)
    found = beginnings(
        TokenStore.open(tmp_path / "store"), PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    )
    assert found == ["dust rose", "==== ----", "snow fell"]


def test_a_final_model_that_is_not_what_was_trained_is_refused(volume: Path) -> None:
    """As an adapter would make it that was merged into one layer too many."""
    run = copy_of_run(volume, "other")
    weights = load_file(run / "final" / "model.safetensors")
    weights["embed_out.weight"] *= 1.01
    part = run / ".final.part"
    (run / "final").rename(part)
    about = read_manifest(part).about
    (part / "manifest.json").unlink()
    save_file(weights, part / "model.safetensors", {"format": "pt"})
    seal(part, run / "final", about)
    config = evaluate_config(volume, run_name="other")
    assert run_step("evaluate", config) == 1, log_of(config, "evaluate")
    assert "the final model is not the one that was trained" in log_of(config, "evaluate")


def copy_of_run(volume: Path, name: str) -> Path:
    shutil.copytree(volume / "run", volume / name)
    (volume / name / "evaluation.json").unlink(missing_ok=True)
    return volume / name
