"""Reading in processes that can be killed: what it stops, and what continues meanwhile."""

import asyncio
import os
import signal
from collections.abc import Iterator, Mapping
from typing import Any

import psutil
import pytest

from trainer.serving import readers as readers_module
from trainer.serving.api.bodies import ApiError
from trainer.serving.readers import ReaderError, Readers

MODEL = object()


def read(model: object, kind: str, body: bytes, headers: Mapping[str, str]) -> Any:
    """Stands in for the reading of requests; `kind` says what it does."""
    if kind == "for ever":
        while True:
            pass
    if kind == "much memory":
        return [bytes(2**28) for _ in range(64)]
    if kind == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "refuses":
        raise ApiError(400, "prompt is wrong.", "prompt", {"Retry-After": "2"})
    if kind == "fails":
        raise KeyError("a fault of ours")
    return {"model": model, "body": body, "headers": headers, "pid": os.getpid()}


@pytest.fixture
def readers() -> Iterator[Readers]:
    started = Readers(MODEL, read, count=2)
    yield started
    started.close()


def test_what_is_read_comes_back_and_the_model_is_not_sent(readers: Readers) -> None:
    made = asyncio.run(readers.read("plain", b"x" * 3_000_000, {"a": "b"}))
    assert made["model"] is MODEL
    assert (made["body"], made["headers"]) == (b"x" * 3_000_000, {"a": "b"})
    assert made["pid"] != os.getpid()


def newest_child() -> psutil.Process:
    """What a test started last; a browser or a warm parent may be there as well."""
    return max(psutil.Process().children(), key=lambda process: process.create_time())


def test_one_that_reads_for_ever_is_stopped_while_others_are_read(
    readers: Readers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers_module, "READ_SECONDS", 2.0)

    async def ask() -> tuple[int, int]:
        nursery = newest_child()
        endless = asyncio.create_task(readers.read("for ever", b"", {}))
        await asyncio.sleep(0.05)  # it has its reader
        meanwhile = 0
        while not endless.done():
            await readers.read("plain", b"", {})
            meanwhile += 1
        with pytest.raises(ApiError, match="longer than 2 seconds to read") as refused:
            await endless
        await readers.read("plain", b"", {})
        while len(nursery.children()) != 2:  # the killed one's place is taken
            await asyncio.sleep(0.01)
        return refused.value.status, meanwhile

    status, meanwhile = asyncio.run(ask())
    assert status == 400
    assert meanwhile > 10


@pytest.mark.parametrize("kind", ["much memory", "dies"])
def test_one_that_takes_too_much_is_refused_and_replaced(readers: Readers, kind: str) -> None:
    async def ask() -> int:
        with pytest.raises(ApiError, match="too much memory") as refused:
            await readers.read(kind, b"", {})
        for _ in range(3):
            assert (await readers.read("plain", b"1", {}))["body"] == b"1"
        return refused.value.status

    assert asyncio.run(ask()) == 413


def test_errors_come_back_whole(readers: Readers) -> None:
    async def ask() -> None:
        with pytest.raises(ApiError) as refused:
            await readers.read("refuses", b"", {})
        told = refused.value
        assert (told.status, told.message, told.param) == (400, "prompt is wrong.", "prompt")
        assert told.headers == {"Retry-After": "2"}
        with pytest.raises(ReaderError, match="KeyError: 'a fault of ours'"):
            await readers.read("fails", b"", {})

    asyncio.run(ask())


def test_a_client_that_leaves_frees_its_reader(readers: Readers) -> None:
    async def ask() -> None:
        for _ in range(5):  # more than there are readers
            left = asyncio.create_task(readers.read("for ever", b"", {}))
            await asyncio.sleep(0.02)
            left.cancel()
            await asyncio.wait({left})
        await readers.read("plain", b"", {})

    asyncio.run(ask())


def test_stopping_shortens_what_is_being_read(
    readers: Readers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.serving.deadlines.STOPPING_SECONDS", 0.2)
    monkeypatch.setattr(readers_module, "READ_SECONDS", 10_000.0)

    async def ask() -> None:
        endless = asyncio.create_task(readers.read("for ever", b"", {}))
        await asyncio.sleep(0.05)
        readers.deadlines.stop()
        with pytest.raises(ApiError):
            await endless

    asyncio.run(ask())


def test_readers_end_with_the_server() -> None:
    started = Readers(MODEL, read, count=2)
    nursery = newest_child()
    asyncio.run(started.read("plain", b"", {}))
    processes = [nursery, *nursery.children()]
    assert len(processes) == 3
    started.close()
    assert not any(process.is_running() for process in processes)


def test_a_lost_nursery_is_told() -> None:
    started = Readers(MODEL, read, count=2)
    told: list[bool] = []
    started.on_failure = lambda: told.append(True)

    async def ask() -> None:
        await started.read("plain", b"", {})
        nursery = newest_child()
        nursery.kill()
        nursery.wait()
        with pytest.raises(ApiError):
            await started.read("dies", b"", {})

    asyncio.run(ask())
    assert told
    assert "the process that starts readers ended" in (started.failure or "")
    started.close()
