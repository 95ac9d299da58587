"""Several nodes: they train as one would, and none waits for one that is gone."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.cli.prefect_server import free_port
from tests.training.forking import (
    Strike,
    log_of,
    run_step,
    start_step,
    stopping_at_end,
    wait_for,
)
from tests.training.volume import make_config, make_volume, read_lines
from trainer.contract.errors import LostNodeError, RequestError
from trainer.training.processes import launch, nodes
from trainer.training.processes.nodes import RANK_VARIABLE, Group, meet
from trainer.training.save.records import MEASURED

ENGINE = "trainer.training.engine.engine"
KILLED, STOPPED, LOST = -signal.SIGKILL, 143, 75


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setattr(nodes, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(nodes, "LAST_WORDS_SECONDS", 240.0)  # the others have ended long before
    monkeypatch.setattr(launch, "LINGER_SECONDS", 0.5)
    monkeypatch.setenv(RANK_VARIABLE, "0")


def start_both(config: dict[str, Any], *strikes: Strike | None) -> tuple[int, int]:
    """Start the step on two nodes and wait; their exit codes."""
    with contextlib.ExitStack() as ended:
        pids = []
        for rank, strike in enumerate(strikes):
            os.environ[RANK_VARIABLE] = str(rank)
            pids.append(start_step("finetune", config, strike))
            ended.enter_context(stopping_at_end(pids[-1]))
        return wait_for(pids[0]), wait_for(pids[1])


def comparable(config: dict[str, Any]) -> tuple[bytes, list[dict[str, Any]]]:
    run = Path(config["volume"]) / "run"
    lines = read_lines(run / "metrics.jsonl")
    kept = [{k: v for k, v in line.items() if k not in MEASURED} for line in lines]
    return (run / "final/model.safetensors").read_bytes(), kept


def test_nodes_that_end_in_turn_train_what_one_node_with_as_many_processes_trains(
    tmp_path: Path,
) -> None:
    whole = make_config(make_volume(tmp_path / "one"), processes=2, zero_stage=2)
    assert run_step("finetune", whole) == 0, log_of(whole)[-3000:]
    config = make_config(make_volume(tmp_path / "two"), nodes=2, zero_stage=2)
    rounds = [
        # A process of the second node is killed: that node failed, the first only lost it.
        ((None, Strike(f"{ENGINE}:Engine.step", 3, rank=1)), (LOST, 1)),
        # The first node, with the store, is killed.
        (
            (Strike("trainer.training.record.validate_and_sample:held_out_loss", 1), None),
            (KILLED, LOST),
        ),
        # The first node is evicted: all save, and only it was stopped.
        ((Strike(f"{ENGINE}:Engine.step", 1, signum=signal.SIGTERM), None), (STOPPED, LOST)),
        # The first node is killed while it alone writes the final model.
        ((Strike("trainer.training.save.final:seal", 1), None), (KILLED, LOST)),
    ]
    for strikes, codes in rounds:
        assert start_both(config, *strikes) == codes, log_of(config)[-5000:]
    assert start_both(config, None, None) == (0, 0), log_of(config)[-5000:]
    assert comparable(config) == comparable(whole)
    # A later process, alone, finds it done and waits for none.
    os.environ[RANK_VARIABLE] = "1"
    assert run_step("finetune", config) == 0


@pytest.fixture
def forks() -> Iterator[list[int]]:
    """Process ids of what a test has forked, killed at its end."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def as_node(
    forks: list[int],
    rank: int,
    work: Callable[[Group], Any],
    volume: Path,
    lost_seconds: float = 60,
) -> int:
    """Be one of two nodes in a fork; its process id. What it says goes to `{rank}.log`."""
    pid = os.fork()
    if pid:
        forks.append(pid)
        return pid
    os.environ[RANK_VARIABLE] = str(rank)
    nodes.LOST_SECONDS = lost_seconds
    said = volume / f"{rank}.log"
    try:
        with meet(2) as group:
            (volume / f"{rank}.met").touch()
            work(group)
        said.write_text("done")
    except LostNodeError as error:
        said.write_text(str(error))
    finally:
        os._exit(0)
    return 0


def wait_until(path: Path) -> None:
    deadline = time.monotonic() + 240
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def stay(group: Group) -> None:
    while True:
        group.check()
        time.sleep(0.01)


def test_a_node_that_falls_silent_is_given_up(tmp_path: Path, forks: list[int]) -> None:
    first = as_node(forks, 0, stay, tmp_path, lost_seconds=1.5)
    second = as_node(forks, 1, stay, tmp_path)
    wait_until(tmp_path / "0.met")
    wait_until(tmp_path / "1.met")
    os.kill(second, signal.SIGSTOP)  # as a node without power: no connection closes
    wait_for(first)
    os.kill(second, signal.SIGKILL)
    wait_for(second)
    assert (tmp_path / "0.log").read_text() == "node 1 has not been heard of for 2 s"


def test_the_others_learn_why_the_first_node_ended(tmp_path: Path, forks: list[int]) -> None:
    def fail(group: Group) -> None:
        raise RequestError("context is too long (got 4096).")

    first = as_node(forks, 0, lambda group: group.agree(lambda: fail(group) or {}), tmp_path)
    second = as_node(forks, 1, lambda group: group.agree(dict), tmp_path)
    wait_for(first)
    wait_for(second)
    assert (tmp_path / "1.log").read_text() == "node 0 ended: context is too long (got 4096)."


def test_a_node_that_was_started_anew_meets_the_others_when_they_are_too(
    tmp_path: Path, forks: list[int]
) -> None:
    first, second = (as_node(forks, rank, stay, tmp_path) for rank in (0, 1))
    wait_until(tmp_path / "1.met")
    os.kill(second, signal.SIGKILL)
    wait_for(second)
    agreed = as_node(forks, 1, lambda group: _write(tmp_path, group.agree(dict)), tmp_path)
    wait_for(first)
    assert (tmp_path / "0.log").read_text() == "node 1 was started anew"
    wait_for(as_node(forks, 0, lambda group: group.agree(lambda: {"job": 1}), tmp_path))
    wait_for(agreed)
    assert json.loads((tmp_path / "agreed").read_text()) == {"job": 1}
    assert (tmp_path / "1.log").read_text() == "done"


def _write(folder: Path, agreed: dict[str, Any]) -> None:
    (folder / "agreed").write_text(json.dumps(agreed))
