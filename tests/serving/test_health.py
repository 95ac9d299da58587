"""Readiness is an answer, not a flag: an engine that hangs, is busy, or died."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.serving import tiny_models
from tests.serving.asking import running
from trainer.serving import health as health_module
from trainer.serving.engine.sequences import SequenceRequest
from trainer.serving.health import Health
from trainer.serving.read_requests import read_request
from trainer.serving.readers import Readers
from trainer.serving.service import ServedModel, Service


class Gate:
    """Holds the engine's thread up while it is closed."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def service(gate: Gate) -> Iterator[Service]:
    tokenizer = tiny_models.tokenizer()
    model = ServedModel(
        name="final",
        tokenizer=tokenizer,
        vocabulary=300,
        max_total_tokens=256,
        longest_token_bytes=13,
    )
    readers = Readers(model, read_request, count=1)
    with running(tiny_models.model("gptj")) as engine:
        forward = engine.model.forward

        def held(*args: Any, **kwargs: Any) -> Any:
            gate.open.wait()
            return forward(*args, **kwargs)

        engine.model.forward = held  # type: ignore[method-assign]
        yield Service(model=model, engine=engine, readers=readers, dtype="float32", digests={})
        gate.open.set()
    readers.close()


def test_a_hanging_engine_is_not_ready_until_it_goes_on(
    service: Service, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health_module, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(health_module, "STALLED_SECONDS", 0.5)
    monkeypatch.setattr(health_module, "ANSWER_SECONDS", 0.2)

    async def ask() -> None:
        health = Health(service)
        assert await health.is_ready()
        gate.open.clear()
        while await health.is_ready():  # for as long as it may only be slow
            pass
        assert health.is_live
        gate.open.set()
        while not await health.is_ready():
            pass

    asyncio.run(ask())


def test_a_busy_engine_is_ready_while_it_answers_others(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health_module, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(health_module, "ANSWER_SECONDS", 0.01)

    async def ask() -> None:
        health = Health(service)
        request = SequenceRequest(prompt_ids=(5,), max_new_tokens=150)
        answers = asyncio.create_task(service.answers([request] * 40))
        await asyncio.sleep(0)  # all of them are submitted
        asked = 0
        while not answers.done():
            assert await health.is_ready()
            asked += 1
        assert asked > 5
        assert len(await answers) == 40

    asyncio.run(ask())


def test_a_dead_engine_is_neither_ready_nor_alive(service: Service) -> None:
    async def ask() -> None:
        health = Health(service)
        service.engine.failure = "it broke"
        assert not await health.is_ready()
        assert not health.is_live

    asyncio.run(ask())
