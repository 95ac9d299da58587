"""Run steps as processes of this machine, each in a session of its own.

A step's process holds a file lock that it inherited, so "is it alive" is a question
to the kernel: no process id is trusted, and a killed one blocks nobody. A second
request for the same work adopts the process that is there.

    {home}/{pvc}/.runs/{run}/lock                 held by the orchestrator of the run
    {home}/{pvc}/.runs/{run}/{step}/lock          held by the step's process
    {home}/{pvc}/.runs/{run}/{step}/work.json     key of the work, place in the log
    {home}/{pvc}/.runs/{run}/{step}/{pid,config.json,outcome.json}
    {home}/{pvc}/{logs}/{run}/{step}.log          all the step has printed, over all attempts
"""

import contextlib
import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from infra.backend import BusyError, Line, PlaceError, StepEnd, StepSpec, unheard
from infra.local import service
from infra.local.log_follower import LogFollower
from infra.local.step_folder import (
    Work,
    clear,
    outlive,
    read_json,
    read_pid,
    read_work,
    try_lock,
    writing,
)
from trainer.contract import warm
from trainer.contract.work_key import differing

RUNS = ".runs"
POLL_SECONDS = 0.1
# The trainer's own default for saving at SIGTERM is 120 seconds; then it is killed.
GRACE_SECONDS = 130.0
LOG_BYTES = 64 << 20


class LocalBackend:
    """Steps as processes of this machine, on the volumes below `home`.

    Args:
        home: Folder that holds the volumes.
        logs: Folder on the volume for full logs.
        python: Interpreter that has the trainer's dependencies.
    """

    detaches = False  # who is at the machine means the step by Ctrl-C

    def __init__(self, home: Path, logs: str = "logs", python: str = sys.executable) -> None:
        self.home = home.resolve()
        self.logs = logs
        self.python = python
        self._started: dict[Path, warm.Process] = {}
        self._positions: dict[Path, int] = {}

    def volume(self, pvc: str) -> Path:
        return self.home / pvc

    def mount(self, pvc: str) -> Path:
        return self.volume(pvc)

    def serving(self, kind: str) -> None:
        return None

    def stop_service(self, pvc: str, run_name: str, *, kind: str = "") -> bool:
        return service.stop(self.volume(pvc), run_name, grace_seconds=None)

    @contextlib.contextmanager
    def claim(self, pvc: str, run_name: str, *, attempt: str = "") -> Iterator[None]:
        """Be the run's only orchestrator while the block runs; a killed one holds nothing.

        Raises:
            BusyError: Another process is at this run.
            PlaceError: The volume is not there, or can't be written.
        """
        with self._opened(self._folder(pvc, run_name), pvc) as lock:
            if not try_lock(lock.fileno()):
                holder, theirs = _read_claim(lock)
                if not attempt or theirs != attempt:
                    raise BusyError(
                        f"run_name {run_name!r} is being run by process {holder or '?'} already. "
                        "Wait for it, or stop it first."
                    )
                outlive(int(holder), lock.fileno())
            with writing(self.volume(pvc)):
                # Past the file's buffer, which would try again, and fail again, at its close.
                os.truncate(lock.fileno(), 0)
                os.write(lock.fileno(), f"{os.getpid()} {attempt}".encode())
            yield

    @contextlib.contextmanager
    def _opened(self, folder: Path, pvc: str) -> Iterator[TextIO]:
        """The lock file in `folder`, which is made where it is not there."""
        volume = self.volume(pvc)
        if not volume.is_dir():
            raise PlaceError(
                f"pvc {pvc!r} is not a folder below --home (no {volume}). Make it, and put your "
                "text and models there, or name another home."
            )
        with writing(volume):
            folder.mkdir(parents=True, exist_ok=True)
            lock = open(folder / "lock", "a+", encoding="utf-8")  # noqa: SIM115 - closed below
        with lock:
            yield lock

    def settle(self, pvc: str, run_name: str, *, failed: bool) -> None:
        """Nothing to note: here every start of a step looks again at what is there."""

    def submit(self, spec: StepSpec, *, on_line: Line = unheard) -> str:
        """Start the step, or adopt the same work where it is running.

        Raises:
            BusyError: Other work is running in this step of the run.
            PlaceError: The volume is not there, or can't be written.
        """
        folder = self._folder(spec.volume, spec.run_name, spec.step)
        with self._opened(folder, spec.volume) as lock:
            if try_lock(lock.fileno(), patience_seconds=0.2):
                self._start(spec, folder, lock.fileno())
                return f"process {self._started[folder].pid}"
        work = read_work(folder)
        if work is None or work.key != spec.key or _is_to_start_over(spec, folder):
            raise BusyError(_in_the_way(spec, folder))
        # Lines from before an adoption went to the orchestrator that started the step.
        self._positions.setdefault(folder, Path(work.log).stat().st_size)
        return f"process {read_pid(folder)}, which was already running"

    def wait(self, spec: StepSpec, on_line: Line) -> StepEnd:
        """Hand over the step's lines until its process is gone."""
        folder = self._folder(spec.volume, spec.run_name, spec.step)
        work = read_work(folder)
        assert work is not None, "submit comes before wait"
        process = self._started.get(folder)
        log = Path(work.log)
        position = self._positions.get(folder, work.log_offset)
        with LogFollower(log, position) as follower:
            try:
                while self._alive(folder):
                    if not follower.hand_over(on_line):
                        time.sleep(POLL_SECONDS)
                follower.hand_over(on_line, final=True)
            finally:
                # A follower that is interrupted here and waits again gets each line once.
                self._positions[folder] = follower.position
        return self._end(folder, process, log)

    def cancel(
        self, spec: StepSpec, grace_seconds: float = GRACE_SECONDS, *, on_line: Line = unheard
    ) -> None:
        """Ask the step to save and stop; kill all of its processes after the grace."""
        self._stop(self._folder(spec.volume, spec.run_name, spec.step), grace_seconds)

    def hint(self, spec: StepSpec) -> str:
        """How to stop a step that was left alone."""
        return f"Follow it by running the same again; stop it: finetune stop {spec.run_name}"

    def stop(
        self,
        pvc: str,
        run_name: str,
        grace_seconds: float = GRACE_SECONDS,
        *,
        attempts: Collection[str] = (),
        on_line: Line = unheard,
    ) -> list[str]:
        """Cancel every step of the run that is running; return their names.

        Steps with any follower; with `attempts`, only those that no other attempt follows.
        """
        running = self.running_steps(pvc, run_name)
        with contextlib.ExitStack() as held:
            if attempts and running:
                lock = held.enter_context(self._opened(self._folder(pvc, run_name), pvc))
                # Where nobody has it, it is held till the end: nobody begins to follow meanwhile.
                if not try_lock(lock.fileno()):
                    holder, theirs = _read_claim(lock)
                    if theirs not in attempts:
                        who = f"flow run {theirs}" if theirs else f"process {holder}"
                        on_line(f"the {' and '.join(running)} step is left to {who}")
                        return []
            for step in running:
                self._stop(self._folder(pvc, run_name, step), grace_seconds)
        return running

    def running_steps(self, pvc: str, run_name: str) -> list[str]:
        """Names of the run's steps whose processes live."""
        works = sorted(self._folder(pvc, run_name).glob("*/work.json"))
        return [path.parent.name for path in works if self._alive(path.parent)]

    def _folder(self, pvc: str, run_name: str, *more: str) -> Path:
        return self.volume(pvc).joinpath(RUNS, run_name or "-", *more)

    def _start(self, spec: StepSpec, folder: Path, lock: int) -> None:
        config = folder / "config.json"
        with writing(self.volume(spec.volume)):
            output = self._prepare(spec, folder, config)
        with output:
            self._started[folder] = warm.start(
                "trainer",
                [spec.step, str(config)],
                environment={**_environment(folder), **spec.environment},
                output=output.fileno(),
                python=self.python,
                inherited=[lock],
                pid_file=folder / "pid",
            )

    def _prepare(self, spec: StepSpec, folder: Path, config: Path) -> BinaryIO:
        """Write what the step and its followers read; return its log, open for more."""
        volume = self.volume(spec.volume)
        log = volume / self.logs / spec.run_name / f"{spec.step}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        _rotate(log)
        for name in ("outcome.json", "pid", "config.json", "work.json"):
            clear(folder / name)
        values = {**spec.config, "volume": str(volume)}
        config.write_text(json.dumps(values, indent=1), encoding="utf-8")
        log.touch()
        work = Work(key=spec.key, log=str(log), log_offset=log.stat().st_size)
        (folder / "work.json").write_text(json.dumps(dataclasses.asdict(work)))
        return open(log, "ab")

    def _alive(self, folder: Path) -> bool:
        process = self._started.get(folder)
        if process is not None and process.poll() is not None:
            return False
        try:
            with open(folder / "lock", "r+b") as lock:
                return not try_lock(lock.fileno())
        except OSError:
            return False

    def _stop(self, folder: Path, grace_seconds: float) -> None:
        if not self._alive(folder):
            return
        pid = read_pid(folder)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + grace_seconds
        while self._alive(folder) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        if self._alive(folder):
            self.kill_group(pid)
        while self._alive(folder):
            time.sleep(POLL_SECONDS)

    def kill(self, spec: StepSpec) -> None:
        """End the step's processes at once, without letting them save."""
        folder = self._folder(spec.volume, spec.run_name, spec.step)
        if self._alive(folder):
            self.kill_group(read_pid(folder))

    @staticmethod
    def kill_group(pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)

    def _end(self, folder: Path, process: warm.Process | None, log: Path) -> StepEnd:
        outcome = read_json(folder / "outcome.json")
        # Only a parent can learn an exit code; who adopted the step reads its outcome.
        code = process.wait() if process else _CODES.get((outcome or {}).get("status", ""), 1)
        self._started.pop(folder, None)
        self._positions.pop(folder, None)
        reason = "" if outcome else _reason(code, adopted=process is None)
        return StepEnd(exit_code=code, outcome=outcome, reason=reason, log=str(log))


def _rotate(log: Path) -> None:
    """Begin a new log where the old one is large; only the newest old one is kept, as `.1`.

    Steps of a series of retrainings write to one log for years.
    """
    if log.exists() and log.stat().st_size > LOG_BYTES:
        log.replace(log.with_name(f"{log.name}.1"))


def _read_claim(lock: TextIO) -> tuple[str, str]:
    """Who holds the run, or did: process id and attempt."""
    lock.seek(0)
    holder, _, attempt = lock.read().partition(" ")
    return holder, attempt


_CODES = {"done": 0, "refused": 78, "interrupted": 143}


def _reason(code: int, *, adopted: bool) -> str:
    if adopted:
        return "its process ended without leaving an outcome"
    if code == -signal.SIGKILL:
        return "killed by SIGKILL: by somebody, or by the kernel for want of memory"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


def _is_to_start_over(spec: StepSpec, folder: Path) -> bool:
    """Whether `no_resume` is asked for while work runs that was started without it."""
    return bool(spec.config.get("no_resume")) and not _running_config(folder).get("no_resume")


def _running_config(folder: Path) -> dict[str, Any]:
    return read_json(folder / "config.json") or {}


def _in_the_way(spec: StepSpec, folder: Path) -> str:
    running = {**_running_config(folder), "volume": spec.config.get("volume")}
    names = differing(spec.step, running, spec.config)
    names += ["no_resume"] if _is_to_start_over(spec, folder) else []
    step = f"{spec.step} step is running with other parameters ({', '.join(names) or 'not known'})"
    if spec.run_name:
        return (
            f"run_name {spec.run_name!r}: its {step}. Stop it first: finetune stop {spec.run_name}"
        )
    # Of `finetune tokenize`: no run, and so nothing that `finetune stop` could be told.
    pid = read_pid(folder)
    return (
        f"pvc {spec.volume!r} is in use: another command's {step} (process {pid}). "
        f"Wait for it, or end it: kill {pid}"
    )


def _environment(folder: Path) -> dict[str, str]:
    return {
        **os.environ,
        "FINETUNE_TERMINATION_PATH": str(folder / "outcome.json"),
        "PYTHONUNBUFFERED": "1",
    }
