"""Pairs of answers are trained by DPO: with TRL's losses, resumable, against one base model."""

import copy
import json
import signal
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import get_linear_schedule_with_warmup

from tests.training.forking import Strike, log_of, run_step
from tests.training.record_trl import BATCH, BETA, GRADIENTS, LOSSES, PAIRS, STEPS
from tests.training.test_resume import ENGINE, SAVING, assert_same, kill_and_go_on
from tests.training.volume import (
    CONTEXT,
    EOT,
    make_config,
    make_model,
    make_pair_volume,
    make_pairs,
    make_volume,
    read_lines,
)
from trainer.blaming.blame import blame
from trainer.blaming.target import Question
from trainer.contract.errors import RequestError
from trainer.contract.run_folder import RunFolder
from trainer.contract.step_configs import load_step_config
from trainer.contract.topics import SkipConfig
from trainer.contract.work_key import work_key
from trainer.forgetting.begin import plan_forgetting
from trainer.forgetting.finding import Asked
from trainer.tokens.left_out import left_out
from trainer.tokens.store import TokenStore
from trainer.training.data.batches import read_batch
from trainer.training.engine.preference import PreferenceLoss

REFERENCE = "trainer.training.reference"


def pair_config(root: Path, **changes: Any) -> dict[str, Any]:
    names = ("architecture", "pairs", "dropout", "held_out")
    made = {name: changes.pop(name) for name in names if name in changes}
    return make_config(make_pair_volume(root, **made), **changes)


def trained(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    assert run_step("finetune", config) == 0, log_of(config)[-3000:]
    return read_lines(Path(config["volume"]) / "run/metrics.jsonl")


def of(lines: list[dict[str, Any]], name: str) -> list[float]:
    return [line[name] for line in lines if name in line]


class Oracle:
    """DPO as its paper has it: whole logits, both models at hand, autograd alone."""

    def __init__(self, architecture: str) -> None:
        self.model = make_model(architecture)
        self.base = copy.deepcopy(self.model)
        self.pairs = make_pairs(PAIRS + 4)

    def log_prob(self, model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
        ids = torch.tensor([[*prompt, *answer]])
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float()
        return torch.log_softmax(logits, -1).gather(1, torch.tensor(answer)[:, None]).sum()

    def margin(self, number: int) -> torch.Tensor:
        prompt, *answers = self.pairs[number]
        rewards = []
        for answer in answers:
            with torch.no_grad():
                before = self.log_prob(self.base, prompt, answer)
            rewards.append(BETA * (self.log_prob(self.model, prompt, answer) - before))
        return rewards[0] - rewards[1]

    def train(self) -> dict[str, list[float]]:
        adam = torch.optim.AdamW(self.model.parameters(), lr=0.01, weight_decay=0.0)
        curve = get_linear_schedule_with_warmup(adam, STEPS // 10, STEPS)
        found: dict[str, list[float]] = {"loss": [], "reward_margin": [], "reward_accuracy": []}
        for step in range(STEPS):
            begin = step * BATCH * GRADIENTS % PAIRS
            margins = torch.stack([self.margin(begin + at) for at in range(BATCH * GRADIENTS)])
            loss = -functional.logsigmoid(margins).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            adam.step()
            curve.step()
            adam.zero_grad()
            found["loss"].append(float(loss.detach()))
            found["reward_margin"].append(float(margins.detach().mean()))
            found["reward_accuracy"].append(float((margins > 0).double().mean()))
        return found


def compared_config(root: Path, architecture: str) -> dict[str, Any]:
    return pair_config(
        root,
        architecture=architecture,
        pairs=PAIRS,
        batch_size=BATCH,
        gradients=GRADIENTS,
        no_shuffle=True,
        save_steps=0,
        preference={"beta": BETA},
    )


@pytest.mark.parametrize("architecture", ["gptj", "neox", "llama"])
def test_losses_and_rewards_are_those_of_the_formula(tmp_path: Path, architecture: str) -> None:
    lines, oracle = trained(compared_config(tmp_path, architecture)), Oracle(architecture)
    expected = oracle.train()
    for name, wanted in expected.items():
        found = of(lines, name)
        assert len(found) == STEPS
        # A margin of the first step is nothing but rounding, on whichever side of 0.
        first = 1 if name == "reward_accuracy" else 0
        assert np.abs(np.array(found) - wanted)[first:].max() < 1e-4, name
    assert expected["loss"][-1] < 0.5 < expected["loss"][0]
    with torch.no_grad():
        margins = torch.stack([oracle.margin(number) for number in range(PAIRS, PAIRS + 4)])
    assert of(lines, "eval_loss")[-1] == pytest.approx(
        float(-functional.logsigmoid(margins).mean()), abs=1e-4
    )


@pytest.mark.parametrize("architecture", ["gptj", "neox", "llama"])
def test_losses_are_those_of_trl(tmp_path: Path, architecture: str) -> None:
    expected = json.loads(LOSSES.read_text())[architecture]
    lines = trained(compared_config(tmp_path, architecture))
    for name, wanted in expected.items():
        assert len(wanted) == STEPS
        assert np.abs(np.array(of(lines, name)) - wanted).max() < 1e-4, name


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_two_processes_train_as_one(tmp_path: Path, stage: int) -> None:
    """An odd number of pairs: the last micro-batch of a process has none."""
    alone = pair_config(tmp_path / "one", epochs=1)
    together = pair_config(tmp_path / "two", epochs=1, processes=2, zero_stage=stage, batch_size=1)
    one, two = trained(alone), trained(together)
    for name in ("loss", "reward_margin", "reward_accuracy", "eval_loss"):
        first = 1 if name == "reward_accuracy" else 0
        difference = np.abs(np.array(of(two, name)) - of(one, name))[first:]
        assert difference.max() < 1e-4, name
    kept = [
        next((Path(config["volume"]) / "cache/reference").iterdir()) for config in (alone, together)
    ]
    assert kept[0].read_bytes() == kept[1].read_bytes() and kept[0].name == kept[1].name


def test_killed_and_gone_on_it_is_the_unbroken_run(tmp_path: Path) -> None:
    whole, broken = (pair_config(tmp_path / name, save_steps=3) for name in ("whole", "broken"))
    trained(whole)
    strikes = [
        Strike(f"{ENGINE}:Engine.log_probs", 5),
        Strike(f"{REFERENCE}:_keep", 1),
        Strike(f"{ENGINE}:Engine.loss", 9),
        Strike(f"{SAVING}:seal", 1, after=True),
        Strike(f"{ENGINE}:Engine.step", 1, signum=signal.SIGTERM),
    ]
    kill_and_go_on(broken, strikes)
    assert_same(broken, whole)


def test_a_resumed_run_makes_its_reference_again_where_it_was_lost(tmp_path: Path) -> None:
    whole, broken = (pair_config(tmp_path / name, save_steps=3) for name in ("whole", "broken"))
    trained(whole)
    sealed = Path(broken["volume"]) / "run/checkpoints/step-00000003"
    assert run_step("finetune", broken, Strike(f"{ENGINE}:Engine.step", 5, sealed=sealed)) < 0
    [kept] = (Path(broken["volume"]) / "cache/reference").iterdir()
    kept.write_bytes(kept.read_bytes()[:-1] + b"x")
    assert run_step("finetune", broken) == 0, log_of(broken)[-3000:]
    assert "is damaged" in log_of(broken)
    assert_same(broken, whole)


def test_the_reference_is_computed_once_for_the_same_content(tmp_path: Path) -> None:
    config = pair_config(tmp_path, epochs=1)
    first = trained(config)
    assert "computed the base model's log-probabilities of 25 pairs" in log_of(config)
    again = config | {"run_name": "again", "preference": {"beta": 0.2}, "learn_rate": 0.02}
    again["request"] = {"run_name": "again", "epochs": 2}
    assert run_step("finetune", again) == 0, log_of(again)[-3000:]
    assert log_of(config).count("\ncomputed the base model's") == 1
    assert "log-probabilities of 25 pairs are cached" in log_of(config)
    lines = read_lines(tmp_path / "again/metrics.jsonl")
    assert of(lines, "loss")[0] == pytest.approx(of(first, "loss")[0], abs=1e-6)
    other = tmp_path / "models/tiny/config.json"
    other.write_text(other.read_text() + "\n")
    third = again | {"run_name": "third", "request": {"run_name": "third"}}
    assert run_step("finetune", third) == 0, log_of(third)[-3000:]
    assert log_of(config).count("\ncomputed the base model's") == 2


def test_nothing_is_kept_of_a_damaged_store(tmp_path: Path) -> None:
    config = pair_config(tmp_path)
    tokens = tmp_path / "tokens/tiny/tokens.bin"
    content = bytearray(tokens.read_bytes())
    content[0] ^= 1
    tokens.write_bytes(content)
    assert run_step("finetune", config) != 0
    assert "has other content" in log_of(config)
    assert not (tmp_path / "cache/reference").exists()


def test_dropout_of_the_model_is_off(tmp_path: Path) -> None:
    with_it, without = (
        pair_config(tmp_path / str(share), epochs=1, dropout=share, architecture="neox")
        for share in (0.5, 0.0)
    )
    assert of(trained(with_it), "loss") == of(trained(without), "loss")


def test_adapters_are_trained_against_the_base_model(tmp_path: Path) -> None:
    lora = {"rank": 4, "target_modules": "all-linear"}
    more = {"epochs": 4, "learn_rate": 0.05, "preference": {"beta": 1.0}}
    config = pair_config(tmp_path, lora=lora, **more)
    lines = trained(config)
    assert of(lines, "loss")[0] == pytest.approx(np.log(2), abs=1e-5)
    assert of(lines, "loss")[-1] < 0.5
    dora = config | {"run_name": "dora", "lora": {**lora, "dora": True}, "request": {}}
    assert run_step("finetune", dora) == 0, log_of(dora)[-3000:]
    first = read_lines(tmp_path / "dora/metrics.jsonl")
    assert of(first, "loss")[0] == pytest.approx(np.log(2), abs=1e-5)


def test_the_finetuned_model_is_compared_with_the_base(tmp_path: Path) -> None:
    config = pair_config(tmp_path, epochs=3, preference={"beta": BETA})
    lines = trained(config)
    asked = {name: config[name] for name in ("volume", "run_name", "model", "tokens", "preference")}
    asked["sampling"] = {"prompt_tokens": 0}
    assert run_step("evaluate", asked) == 0, log_of(config, "evaluate")[-3000:]
    report = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert report["base_loss"] == pytest.approx(np.log(2))
    assert report["loss"] == pytest.approx(of(lines, "eval_loss")[-1], abs=1e-5)
    assert report["perplexity"] is None and report["base_perplexity"] is None
    assert 0 <= report["pairs"]["reward_accuracy"] <= 1
    page = (tmp_path / "run/evaluation.md").read_text()
    assert "before" in page and "(4 pairs)" in page and "| better answer preferred |" in page
    assert "perplexity" not in page


def test_what_compares_models_by_text_is_refused(tmp_path: Path) -> None:
    config = pair_config(tmp_path, schedule={"max_steps": 1})
    config["request"] = {"run_name": "run", "dataset": "dataset"}
    trained(config)
    run = RunFolder(tmp_path, "run")
    with pytest.raises(RequestError, match="finetune forget is not for runs on pairs"):
        plan_forgetting(tmp_path, run, Asked(documents=["dataset/made-up.txt#3"]))
    with pytest.raises(RequestError, match="finetune blame is not for runs on pairs"):
        blame(tmp_path, run, Question(held_out=True))


def test_a_run_on_text_records_nothing_of_pairs(tmp_path: Path) -> None:
    text = make_config(make_volume(tmp_path / "text"), schedule={"max_steps": 1})
    pairs = pair_config(tmp_path / "pairs", schedule={"max_steps": 1})
    for config, says in ((text, False), (pairs, True)):
        lines = trained(config)
        record = json.loads((Path(config["volume"]) / "run/run.json").read_text())
        assert ("preference" in record["config"]) is says
        assert ("reward_margin" in lines[0]) is says
        assert (Path(config["volume"]) / "cache/reference").exists() is says
        shown = asdict(load_step_config("finetune", json.dumps(config)))
        before = {name: value for name, value in shown.items() if name != "preference"}
        assert work_key("finetune", shown) == work_key("finetune", before)


def test_a_skipped_pair_is_in_no_step(tmp_path: Path) -> None:
    config = pair_config(tmp_path, epochs=1)
    store = TokenStore.open(tmp_path / "tokens/tiny")
    skip = SkipConfig(documents=["dataset/made-up.txt#3"])
    found = left_out(store, skip)
    assert found is not None and found.contexts.tolist() == [2]
    assert found.figures["tokens"] == store.trained_tokens(np.array([2]))
    lines = trained(config | {"skip": {"documents": skip.documents}})
    assert of(lines, "tokens")[-1] == store.trained_tokens(slice(0, 21)) - found.figures["tokens"]


def test_a_batch_holds_each_answer_in_a_row(tmp_path: Path) -> None:
    store = TokenStore.open(make_pair_volume(tmp_path) / "tokens/tiny")
    for batch in (read_batch(store, np.arange(2)), read_batch(store, np.arange(2), 3)):
        assert batch.trained is not None
        for row, (number, side) in enumerate(((0, 1), (0, 2), (1, 1), (1, 2))):
            prompt, answer = make_pairs(2)[number][0], make_pairs(2)[number][side]
            length = len(prompt) + len(answer)
            assert batch.ids[row, :length].tolist() == [*prompt, *answer]
            assert int(batch.lengths[row]) == length
            wanted = [False] * len(prompt) + [True] * len(answer)
            assert batch.trained[row].tolist() == wanted + [False] * (CONTEXT - length)
        assert not batch.lengths[4:].any()
    assert not read_batch(store, np.arange(0)).lengths.any()


def test_an_empty_pair_has_no_loss() -> None:
    module = PreferenceLoss(make_model("gptj"), BETA)
    ids = torch.full((4, CONTEXT), EOT)
    lengths = torch.tensor([6, 7, 0, 0])
    reference = torch.zeros(2, 2, dtype=torch.float64)
    both = module(ids, lengths, None, None, reference)
    assert torch.equal(both, module(ids[:2], lengths[:2], None, None, reference[:1]))
    nothing = module(ids[2:], lengths[2:], None, None, reference[1:])
    nothing.backward()
    assert float(nothing.detach()) == 0 and module.rewards is not None
    assert module.rewards.tolist() == [0, 0]
