"""Whatever fails inside, each client gets an answer within its time."""

import asyncio
import dataclasses
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.serving import tiny_models
from tests.serving.asking import ask, running
from trainer.serving import service as service_module
from trainer.serving.api.bodies import ApiError
from trainer.serving.engine.contrastive import ContrastiveSearch
from trainer.serving.engine.engine import Engine
from trainer.serving.engine.sampling import Sampling
from trainer.serving.engine.sequences import Event, Sequence, SequenceRequest
from trainer.serving.read_requests import read_request
from trainer.serving.readers import Readers
from trainer.serving.service import ServedModel, Service

MODEL = ServedModel(
    name="final",
    tokenizer=tiny_models.tokenizer(),
    vocabulary=300,
    max_total_tokens=256,
    longest_token_bytes=13,
)
REQUESTS = [SequenceRequest(prompt_ids=(5, 6), max_new_tokens=9) for _ in range(3)]


@pytest.fixture(scope="module")
def readers() -> Iterator[Readers]:
    started = Readers(MODEL, read_request, count=1)
    yield started
    started.close()


def service_of(engine: Any, readers: Readers) -> Service:
    return Service(model=MODEL, engine=engine, readers=readers, dtype="float32", digests={})


def fail_at(token: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the choice of that token, of the second sequence, raise."""
    choose = Sequence.choose

    def failing(sequence: Sequence, logits: Any) -> int:
        if len(sequence.answer_ids) == token and sequence.index == 1:
            raise ZeroDivisionError("a fault of ours")
        return choose(sequence, logits)

    monkeypatch.setattr(Sequence, "choose", failing)


def finished(engine: Engine, requests: list[SequenceRequest]) -> dict[int, Event]:
    """How each of the sequences ends."""
    ended: dict[int, Event] = {}
    done = threading.Event()

    def sink(events: list[Event]) -> None:
        ended.update({event.index: event for event in events if event.finish})
        if len(ended) == len(requests):
            done.set()

    engine.submit(requests, sink)
    assert done.wait(60), "a sequence was lost"
    return ended


@pytest.mark.parametrize("token", [0, 1, 5])
def test_an_error_of_one_sequence_ends_that_one_alone(
    monkeypatch: pytest.MonkeyPatch, token: int, capfd: pytest.CaptureFixture[str]
) -> None:
    fail_at(token, monkeypatch)
    with running(tiny_models.model("gptj")) as engine:
        ended = finished(engine, REQUESTS)
        assert [ended[index].finish == "error" for index in range(3)] == [False, True, False]
        assert engine.alive
        monkeypatch.undo()
        assert finished(engine, REQUESTS)[1].finish != "error"
    assert "ZeroDivisionError: a fault of ours" in capfd.readouterr().err


def test_an_error_of_a_prompts_scores_ends_that_sequence_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing(*_: object) -> None:
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr(Sequence, "score_prompt", failing)
    scored = dataclasses.replace(REQUESTS[0], prompt_logprobs=True)
    with running(tiny_models.model("gptj")) as engine:
        ended = finished(engine, [REQUESTS[0], scored])
        assert [ended[index].finish == "error" for index in range(2)] == [False, True]
        assert engine.alive


def test_an_error_of_a_sequence_that_is_answered_alone_ends_it_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing(_: object) -> None:
        raise ZeroDivisionError("a fault of ours")

    monkeypatch.setattr(ContrastiveSearch, "step", failing)
    searched = dataclasses.replace(REQUESTS[0], sampling=Sampling(penalty_alpha=0.5, top_k=2))
    with running(tiny_models.model("gptj")) as engine:
        ended = finished(engine, [REQUESTS[0], searched])
        assert [ended[index].finish == "error" for index in range(2)] == [False, True]
        assert engine.alive


def test_a_client_that_takes_no_events_costs_the_others_nothing() -> None:
    def gone(_: list[Event]) -> None:
        raise RuntimeError("the event loop is closed")

    with running(tiny_models.model("gptj")) as engine:
        engine.submit(REQUESTS, gone)
        assert finished(engine, REQUESTS)[2].finish != "error"
        assert engine.alive


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_of_the_model_itself_ends_every_sequence() -> None:
    with running(tiny_models.model("gptj")) as engine:
        break_model(engine)
        ended = finished(engine, REQUESTS)
        assert {event.finish for event in ended.values()} == {"error"}
        assert not engine.alive


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_client_of_an_engine_that_ends_silently_gets_an_error(
    monkeypatch: pytest.MonkeyPatch, readers: Readers
) -> None:
    monkeypatch.setattr("trainer.serving.engine.engine.Engine._deliver", lambda engine: None)
    with running(tiny_models.model("gptj")) as engine:
        break_model(engine)
        with pytest.raises(ApiError, match="the model failed") as told:
            asyncio.run(service_of(engine, readers).answers(REQUESTS))
        assert told.value.status == 500


def break_model(engine: Engine) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a fault of ours")

    engine.model.forward = broken  # type: ignore[method-assign]


def test_a_client_of_an_engine_that_hangs_is_told_at_its_deadline(
    monkeypatch: pytest.MonkeyPatch, readers: Readers
) -> None:
    monkeypatch.setattr(service_module, "ENGINE_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(service_module, "GIVEN_UP_SECONDS", 0.1)
    hold = threading.Event()
    with running(tiny_models.model("gptj"), request_seconds=0.2) as engine:
        forward = engine.model.forward

        def held(*args: Any, **kwargs: Any) -> Any:
            hold.wait()
            return forward(*args, **kwargs)

        engine.model.forward = held  # type: ignore[method-assign]
        try:
            with pytest.raises(ApiError, match=r"longer than 0\.2 seconds") as told:
                asyncio.run(service_of(engine, readers).answers(REQUESTS))
            assert told.value.status == 504
        finally:
            hold.set()


def test_an_engine_that_answered_all_remembers_none(readers: Readers) -> None:
    with running(tiny_models.model("gptj")) as engine:
        ask(engine, REQUESTS)
        assert not engine._unfinished
