"""A run on a mixture: losses by folder, what was forgotten, and the gate that goes by it."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.test_evaluate import evaluate_config, report_of
from tests.flows.small_volume import make_volume
from tests.training.forking import log_of, run_step
from tests.training.volume import make_config
from trainer.contract.part_losses import forgetting_words
from trainer.contract.run_folder import RunFolder
from trainer.contract.step_configs import ChampionConfig, TokenizeConfig
from trainer.contract.topics import DataConfig, EvaluationConfig
from trainer.report.page import page
from trainer.retraining.step import run as judge
from trainer.tokens import step as tokenize
from trainer.tokens.store import TokenStore


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A volume with an evaluated run on a mixture with replay, and the mixture's store."""
    volume = make_volume(tmp_path_factory.mktemp("mixed"))
    general = volume / "general"
    general.mkdir()
    for number in range(40):
        (general / f"{number}.txt").write_text(f"General text {number} of the world. " * 20)
    data = DataConfig(replay="general", replay_share=0.3)
    asked = {"dataset": "dataset", "model": "models/tiny", "context": 64, "train_ratio": 0.8}
    made = tokenize.run(TokenizeConfig(volume=str(volume), data=data, **asked))  # type: ignore[arg-type]
    tokens = made.result["store"]
    config = make_config(volume, tokens=tokens, epochs=1)
    assert run_step("finetune", config) == 0, log_of(config)[-3000:]
    evaluate = evaluate_config(volume, tokens=tokens)
    assert run_step("evaluate", evaluate) == 0, log_of(evaluate, "evaluate")[-3000:]
    return volume, tokens


def test_losses_are_reported_by_folder(mixed: tuple[Path, str]) -> None:
    volume, tokens = mixed
    report, store = report_of(volume), TokenStore.open(volume / tokens)
    own, general = report["parts"]
    assert (own["name"], own["replay"]) == ("dataset", False)
    assert (general["name"], general["replay"]) == ("general", True)
    for figure in ("base_loss", "loss"):
        total = sum(part["tokens"] * part[figure] for part in report["parts"])
        assert report[figure] == pytest.approx(total / report["tokens"])
    held = range(store.manifest.num_train_contexts, store.manifest.num_contexts)
    assert report["tokens"] == store.trained_tokens(slice(held.start, held.stop))
    evaluations = [
        json.loads(line)["eval_loss"]
        for line in (volume / "run/metrics.jsonl").read_text().splitlines()
        if "eval_loss" in line
    ]
    assert report["loss"] == pytest.approx(evaluations[-1], abs=1e-5)


def test_what_was_forgotten_is_a_line_of_the_report(mixed: tuple[Path, str]) -> None:
    volume, _ = mixed
    rows = report_of(volume)["parts"]
    words = forgetting_words(rows)
    assert words.startswith("what it forgot: the loss on general text (general) ")
    text = (volume / "run/evaluation.md").read_text()
    assert "| general (replay) |" in text and words[1:] in text
    outcome = json.loads((volume / "run/outcomes/evaluate.json").read_text())
    forgot = rows[1]["loss"] - rows[1]["base_loss"]
    assert outcome["result"]["forgot"] == pytest.approx(forgot)
    html = page(RunFolder(volume, "run"))
    assert words in html and "general: 30.0 % of the trained tokens (replay): " in html


def test_retraining_keeps_a_run_that_forgot_too_much(mixed: tuple[Path, str]) -> None:
    volume, tokens = mixed
    path = volume / "run/evaluation.json"
    found: dict[str, Any] = report_of(volume) | {"loss": 1.0, "base_loss": 2.0}
    found["parts"][1] |= {"base_loss": 1.0, "loss": 1.2}
    path.write_text(json.dumps(found))
    asked: dict[str, Any] = {"volume": str(volume), "series": "nightly", "action": "judge"}
    asked |= {"model": "models/tiny", "tokens": tokens, "candidate": "run"}
    verdicts = [
        judge(ChampionConfig(**asked, evaluation=EvaluationConfig(max_forgetting=most))).result
        for most in (None, 0.3, 0.1)
    ]
    assert [verdict["decision"] for verdict in verdicts] == ["promoted", "promoted", "kept"]
    assert "its loss on general text rose by 0.2000 (at most 0.1)" in verdicts[-1]["why"]
