"""Run steps in forked processes: real ones, that signals and kill -9 end, without the imports.

Importing torch, transformers and DeepSpeed takes seconds; a fork of a process that has
them takes none. Every other part of a step is what `python -m trainer` runs.
"""

import contextlib
import functools
import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import trainer.evaluation.step
import trainer.training.process
import trainer.training.step  # noqa: F401  imported here so that forks need not
from trainer import __main__ as command
from trainer.contract.files import write_atomically
from trainer.training.engine.start_up import import_deepspeed
from trainer.training.processes import launch

torch.set_num_threads(1)
import_deepspeed()


@dataclass(frozen=True)
class Strike:
    """Send `signum` to the step's process at the `nth` call of `place` (module:attribute)."""

    place: str
    nth: int = 1
    after: bool = False
    signum: int = signal.SIGKILL
    rank: int | None = None  # None: the step's own process, else that training process
    sealed: Path | None = None  # wait for this checkpoint, which is saved beside the training

    def __str__(self) -> str:
        when = "after" if self.after else "before"
        return f"{signal.Signals(self.signum).name} {when} {self.place.split(':')[1]} {self.nth}"


def run_step(
    step: str, config: dict[str, Any], strike: Strike | None = None, setting: str = ""
) -> int:
    """Run a step to its end; its exit code, or minus the signal that killed it."""
    return wait_for(start_step(step, config, strike, setting))


def start_step(
    step: str, config: dict[str, Any], strike: Strike | None = None, setting: str = ""
) -> int:
    """Start a step; its process id. What it prints goes to a log beside the volume.

    Args:
        strike: When to send it a signal.
        setting: A constant to set first, `module:NAME=number`: waits made shorter.
    """
    volume = Path(config["volume"])
    path = volume / f"{step}.json"
    write_atomically(path, json.dumps(config))  # another node may be reading it
    return _fork(_log(volume, step), lambda: command.main([step, str(path)]), strike, setting)


def wait_for(pid: int) -> int:
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def run_forked(volume: Path, work: Callable[[], int]) -> tuple[int, str]:
    """Do anything in a fork; its exit code and all it printed."""
    log = _log(volume, "forked")
    log.unlink(missing_ok=True)
    code = wait_for(_fork(log, work, None, ""))
    return code, log.read_text(encoding="utf-8")


def log_of(config: dict[str, Any], step: str = "finetune") -> str:
    path = _log(Path(config["volume"]), step)
    return path.read_text(encoding="utf-8") if path.exists() else ""


def ended_with(config: dict[str, Any], step: str = "finetune") -> dict[str, Any]:
    """The outcome that the last `run_step` left for who started it."""
    return json.loads(_log(Path(config["volume"]), step).with_suffix(".termination").read_text())


def _log(volume: Path, step: str) -> Path:
    return volume.parent / f"{volume.name}-{step}.log"


def _fork(log: Path, work: Callable[[], int], strike: Strike | None, setting: str) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = _opened(1), _opened(2)
        os.environ["FINETUNE_TERMINATION_PATH"] = str(log.with_suffix(".termination"))
        launch._start = _start_forked  # type: ignore[assignment]
        target = os.getpid()
        if setting:
            place, _, number = setting.partition("=")
            module, _, name = place.partition(":")
            setattr(importlib.import_module(module), name, float(number))
        if strike is not None:
            _arm(strike, target)
        os._exit(work())
    except BaseException:  # noqa: BLE001  a fork must never return into pytest
        traceback.print_exc()
    os._exit(99)


def _opened(descriptor: int) -> Any:
    """A stream that leaves the descriptor open when it goes: a fork may fork again."""
    return os.fdopen(descriptor, "w", buffering=1, closefd=False)


def _arm(strike: Strike, step_pid: int) -> None:
    module_name, path = strike.place.split(":")
    owner: Any = importlib.import_module(module_name)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    original, calls = getattr(owner, name), 0

    @functools.wraps(original)
    def struck(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        rank = os.environ.get("TEST_RANK")
        calls += rank is None or rank == str(strike.rank or 0)
        now = calls == strike.nth and (rank is None or rank == str(strike.rank or 0))
        target = step_pid if strike.rank is None else os.getpid()
        while now and strike.sealed is not None and not strike.sealed.exists():
            time.sleep(0.01)
        if now and not strike.after:
            _hit(target, strike.signum)
        result = original(*args, **kwargs)
        if now and strike.after:
            _hit(target, strike.signum)
        return result

    setattr(owner, name, struck)


def _hit(pid: int, signum: int) -> None:
    os.kill(pid, signum)
    if signum == signal.SIGKILL:
        time.sleep(30)  # a training process is killed by the kernel when its launcher dies


class _Forked:
    """What launch.py needs of subprocess.Popen, for a forked process."""

    def __init__(self, pid: int) -> None:
        self.pid, self.returncode = pid, None

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self) -> int:
        while self.poll() is None:
            time.sleep(0.01)
        return self.returncode  # type: ignore[return-value]

    def send_signal(self, signum: int) -> None:
        os.kill(self.pid, signum)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _start_forked(folder: Path, rank: int, world: int, processes: int) -> _Forked:
    launcher = os.getpid()
    pid = os.fork()
    if pid:
        return _Forked(pid)
    try:
        os.environ |= {"TEST_RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo"}
        os.environ |= launch.how_to_meet(folder, rank, world, processes)
        os._exit(launch._main(folder, rank, world, launcher))
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
    os._exit(1)


@contextlib.contextmanager
def stopping_at_end(pid: int) -> Iterator[None]:
    """Kill the process when the block ends, however it ends."""
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
