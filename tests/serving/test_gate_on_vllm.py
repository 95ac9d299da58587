"""The gate asks a server with the engine vllm: `make test-vllm`."""

import json
from pathlib import Path

import pytest

from infra.local.service import Service
from trainer.serving.deploy.gate import check, expected_of

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")
TOKENS = 24


def test_golden_answers_alone_and_in_a_batch_are_those_of_the_trainer(
    volume: Path, service: Service
) -> None:
    expected = expected_of(volume / "tales/final")
    assert all(len(golden.answer.ids) >= TOKENS for golden in expected.prompts)
    assert check(service.url, service.name, expected) == []


def test_an_answer_that_was_not_trained_is_named(volume: Path, service: Service) -> None:
    path = volume / "tales/final/golden.json"
    golden = path.read_text()
    wrong = json.loads(golden)
    place = TOKENS - 1
    wrong["prompts"][0]["answer_log_probs"][place] -= 1
    try:
        path.write_text(json.dumps(wrong))
        found = check(service.url, service.name, expected_of(volume / "tales/final"))
    finally:
        path.write_text(golden)
    assert [problem.split(":")[0] for problem in found] == [
        "golden answer 1 alone",
        "golden answer 1 in a batch",
    ]
    assert f"at place {TOKENS}" in found[0]
