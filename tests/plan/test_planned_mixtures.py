"""What a plan says of a mixture: estimated from its parts, and exact once it is there."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.flows.small_volume import make_volume
from trainer.contract.errors import RequestError
from trainer.contract.parameters import Parameters
from trainer.contract.step_configs import TokenizeConfig
from trainer.contract.topics import DataConfig
from trainer.contract.validation import load_parameters
from trainer.contract.wording import part_words
from trainer.plan.context_count import count_contexts
from trainer.tokens import step as tokenize


def test_the_estimate_is_near_and_then_exact(tmp_path: Path) -> None:
    volume = make_volume(tmp_path)
    shutil.copytree(volume / "dataset", volume / "more")
    for number in range(30):
        (volume / f"more/{number}.txt").write_text(f"More of it, number {number}. " * 30)
    data = DataConfig(weights={"dataset": 0.6, "more": 0.4})
    asked: dict[str, Any] = {"dataset": "dataset", "model": "models/tiny", "context": 64}
    config = TokenizeConfig(volume=str(volume), data=data, **asked)
    estimate = count_contexts(config)
    assert estimate.estimated
    made = tokenize.run(config).result
    exact = count_contexts(config)
    assert not exact.estimated and exact.num_contexts == made["num_contexts"]
    assert abs(estimate.num_contexts - exact.num_contexts) < 0.25 * exact.num_contexts
    for before, after in zip(estimate.parts, exact.parts, strict=True):
        assert before["name"] == after["name"] and before["share"] == after["share"]
        assert abs(before["taken"] - after["taken"]) < 0.25 * after["taken"]
    assert part_words(exact.parts[0]).startswith("60.0 % of the trained tokens: ")
    with pytest.raises(RequestError, match=r"data\.weights: dataset is not there \(got 'none'"):
        count_contexts(TokenizeConfig(volume=str(volume), data=DataConfig(
            weights={"dataset": 1, "none": 1}), **asked))  # fmt: skip


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"data": {"weights": {"a": 1}}}, "data.weights does not name the dataset (got a)"),
        (
            {"data": {"weights": {"d": 1}}, "skip": {"documents": ["a"]}},
            "skip does not go with a mixture (got ",
        ),
        ({"evaluation": {"max_forgetting": 1}}, "evaluation.max_forgetting has no effect without"),
        ({"data": {"replay": "a"}}, "data.replay and replay_share go together"),
    ],
)
def test_what_does_not_go_together_is_refused_at_once(given: dict[str, Any], words: str) -> None:
    with pytest.raises(RequestError) as refused:
        load_parameters(Parameters, {"run_name": "run", "dataset": "d", **given})
    assert str(refused.value).startswith(words)
