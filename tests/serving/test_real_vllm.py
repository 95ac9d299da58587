"""vLLM itself, where it is installed: `make test-vllm` makes its environment and runs this."""

import queue
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.serving import on_vllm, tiny_models
from trainer.serving.engine.engine import Limits
from trainer.serving.engine.sequences import Event, SequenceRequest
from trainer.serving.engine.vllm import VllmEngine

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")
ANSWER_TOKENS = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return on_vllm.save_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[VllmEngine]:
    limits = Limits(max_total_tokens=256, max_batch=4)
    options = {"dtype": "float32", "engine_args": on_vllm.ENGINE_ARGS}
    started = VllmEngine(folder, tiny_models.tokenizer(), limits, frozenset([0]), **options)
    started.start()
    yield started
    started.close()


def ask(engine: VllmEngine, requests: list[SequenceRequest]) -> list[list[Event]]:
    events: queue.Queue[tuple[int, Event]] = queue.Queue()
    for index, request in enumerate(requests):

        def sink(told: list[Event], index: int = index) -> None:
            for event in told:
                events.put((index, event))

        engine.submit([request], sink)
    answers: list[list[Event]] = [[] for _ in requests]
    while not all(answer and answer[-1].finish for answer in answers):
        index, event = events.get(timeout=240)
        answers[index].append(event)
    return answers


def test_vllms_answers_and_scores_are_those_of_whole_passes(
    engine: VllmEngine, folder: Path
) -> None:
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    requests = [
        SequenceRequest(
            prompt_ids=prompt,
            max_new_tokens=ANSWER_TOKENS,
            min_new_tokens=ANSWER_TOKENS,
            top_logprobs=0,
        )
        for prompt in ((5, 9, 20), (7,) * 20, (100, 200))
    ]
    for request, answer in zip(requests, ask(engine, requests), strict=True):
        ids = list(request.prompt_ids)
        for event in answer:
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
            assert event.token is not None and event.token_id is not None
            score = float(logits.log_softmax(-1)[event.token_id])
            assert event.token.logprob == pytest.approx(score, abs=1e-3)
            assert event.token_id == int(logits[1:].argmax()) + 1  # the end may not come
            ids.append(event.token_id)
        assert len(ids) == len(request.prompt_ids) + ANSWER_TOKENS


def test_request_that_real_vllm_refuses_ends_with_an_error_and_others_are_answered(
    engine: VllmEngine,
) -> None:
    too_large = SequenceRequest(prompt_ids=(5, 299_000), max_new_tokens=3)
    good = SequenceRequest(prompt_ids=(5, 6), max_new_tokens=3, min_new_tokens=3)
    refused, answered = ask(engine, [too_large, good])
    assert [event.finish for event in refused] == ["error"]
    assert len(answered) == 3
    assert engine.alive
