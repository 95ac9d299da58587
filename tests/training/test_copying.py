"""The copy of the state for a checkpoint; a GPU's streams are a double that keeps their order."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from trainer.training.save import copying
from trainer.training.save.copying import StateCopy


class Cuda:
    """What torch.cuda makes of streams and events, in the order in which it was asked."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def Stream(self) -> Any:  # noqa: N802  torch's name
        return _Stream("side", self.log)

    def Event(self) -> Any:  # noqa: N802
        return _Event(self.log)

    def current_stream(self) -> Any:
        return _Stream("main", self.log)

    @contextlib.contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        self.log.append(f"into {stream.name}")
        yield
        self.log.append("back")


class _Stream:
    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self._log = name, log

    def wait_stream(self, other: Any) -> None:
        self._log.append(f"{self.name} waits for {other.name}")

    def wait_event(self, event: Any) -> None:
        self._log.append(f"{self.name} waits for the copy")


class _Event:
    def __init__(self, log: list[str]) -> None:
        self._log = log

    def record(self, stream: Any) -> None:
        self._log.append(f"recorded in {stream.name}")

    def synchronize(self) -> None:
        self._log.append("host waits")


def test_on_a_gpu_the_side_stream_copies_and_only_the_next_change_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(copying, "_is_on_gpu", lambda view: True)
    monkeypatch.setattr(StateCopy, "_pins", lambda self, view: False)
    cuda, numbers = Cuda(), torch.arange(4.0)
    copy = StateCopy([numbers], in_place=False, cuda=cuda)
    copy.let_change()  # nothing was copied yet: nothing waits
    copy.begin()
    assert cuda.log == ["side waits for main", "into side", "recorded in side", "back"]
    copy.let_change()
    copy.wait()
    assert cuda.log[4:] == ["main waits for the copy", "host waits"]
    numbers += 1
    assert copy.tensors[0].tolist() == [0.0, 1.0, 2.0, 3.0]


def test_on_a_cpu_the_copy_is_made_when_begin_returns() -> None:
    cuda, numbers = Cuda(), torch.arange(3.0)
    copy = StateCopy([numbers], in_place=False, cuda=cuda)
    copy.begin()
    numbers += 1
    copy.let_change()
    copy.wait()
    assert copy.tensors[0].tolist() == [0.0, 1.0, 2.0] and cuda.log == []


def test_in_place_the_tensors_are_the_state_itself() -> None:
    numbers = torch.arange(3.0)
    copy = StateCopy([numbers], in_place=True, cuda=Cuda())
    copy.begin()
    numbers += 1
    assert copy.tensors[0].tolist() == [1.0, 2.0, 3.0]
