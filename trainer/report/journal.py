"""Where a step's time goes, written as it goes: what was killed is known up to its last seconds.

    {run_name}/times/{began, milliseconds}-{step}.json

A process is in one phase at any moment, so the parts of a step add up to the whole.
trainer/report/times.py makes a run's ledger of these files.
"""

import atexit
import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from trainer.contract import run_files
from trainer.contract.files import writer_name
from trainer.contract.json_files import readable_object
from trainer.contract.run_folder import RunFolder

HEARTBEAT_SECONDS = 5.0
KEPT_SAVES = 8  # more checkpoints than that are seldom kept
VARIABLE = "FINETUNE_JOURNAL"  # for a process that continues with the journal of its parent
FIRST_PHASE = {"plan": "fetch", "finetune": "load", "evaluate": "evaluation"}


class Journal:
    """Of one step's process; nothing is written while the run has no folder."""

    def __init__(self, run: RunFolder, record: dict[str, Any], path: Path) -> None:
        self._run, self._record, self._path = run, record, path
        self._phases = [FIRST_PHASE.get(record["step"], record["step"])]
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._since = record["seen"]
        threading.Thread(target=self._beat, name="journal", daemon=True).start()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the block's time under `name`, and no longer under what was going on."""
        with self._lock:
            self._book()
            self._phases.append(name)
        try:
            yield
        finally:
            with self._lock:
                self._book()
                self._phases.pop()

    def went_on_from(self, step: int) -> None:
        """Training begins after `step`: what an earlier attempt did beyond it was lost."""
        self._record["from_step"] = step
        self._write()

    def saved(self, step: int) -> None:
        """What was done up to `step` is in a checkpoint."""
        with self._lock:
            self._book()
            saves = self._record["saves"]
            saves.append({"step": step, "at": self._since, "parts": dict(self._record["parts"])})
            del saves[:-KEPT_SAVES]
        self._write()

    @contextlib.contextmanager
    def handed_over(self) -> Iterator[None]:
        """Let a process that is started in the block continue with this journal."""
        self._ended.set()
        self._write()
        os.environ[VARIABLE] = str(self._path)
        try:
            yield
        finally:
            del os.environ[VARIABLE]
            self._record = readable_object(self._path, run_files.Times) or self._record
            self._since = self._record["seen"]

    def close(self, status: str = "") -> None:
        """Write the end."""
        self._ended.set()
        self._record["status"] = status or self._record["status"]
        self._write()

    def _book(self) -> None:
        now, parts = time.time(), self._record["parts"]
        parts[self._phases[-1]] = parts.get(self._phases[-1], 0.0) + now - self._since
        self._since = self._record["seen"] = now

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            self._write()

    def _write(self) -> None:
        with self._lock:
            self._book()
            if not self._run.is_admitted:
                return
            # A full volume must not end a step for the sake of its journal.
            with contextlib.suppress(OSError):
                self._path.parent.mkdir(exist_ok=True)
                beside = self._path.with_suffix(f".{writer_name()}")
                beside.write_text(json.dumps(self._record), encoding="utf-8")
                beside.replace(self._path)


_current: list[Journal] = []


def placed_at(config: str) -> float:
    """When this process' pod came to its node (Unix time); 0 for one that is in no pod.

    The kubelet makes a pod's volumes as soon as the pod is given to it, before it pulls the
    image, and `..data` is how it puts the downward API's files in place.
    Source: AtomicWriter in Kubernetes' pkg/volume/util/atomic_writer.go, and syncPod in
    pkg/kubelet/kubelet.go, which waits for the volumes and then starts the containers.
    """
    try:
        return (Path(config).parent / "..data").lstat().st_mtime
    except OSError:  # also where the config is JSON and no path
        return 0.0


def begin(
    run: RunFolder, step: str, *, flow_began: float = 0.0, asked: float = 0.0, placed: float = 0.0
) -> Journal:
    """Begin the journal of this process, back at the moment the process was made.

    Args:
        flow_began: When the orchestrator began that asked for the step (Unix time; 0: unknown).
        asked: When it asked.
        placed: When the machine for it was there, and its image was still to come.
    """
    # The kernel says when the process was made by a clock that may be half a second off.
    began = max(asked, placed, psutil.Process().create_time())
    record = {**_empty(step, began), "flow_began": flow_began, "asked": asked, "placed": placed}
    _current[:] = [Journal(run, record, run.times / f"{int(began * 1000)}-{step}.json")]
    return _current[0]


def record_flow(run: RunFolder, began: float) -> None:
    """Leave the time of an orchestrator that comes to its end, if the run has a folder."""
    record = {**_empty("flow", began), "seen": time.time(), "status": "done"}
    path = run.times / f"{int(began * 1000)}-flow.json"
    if run.is_admitted:
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(record), encoding="utf-8")


def _empty(step: str, began: float) -> dict[str, Any]:
    return {
        "step": step,
        "flow_began": 0.0,
        "asked": 0.0,
        "placed": 0.0,
        "began": began,
        "seen": began,  # the last sign of life
        "status": "running",
        "from_step": None,  # after which training began
        "parts": {},  # seconds by phase
        "saves": [],
    }


def go_on() -> None:
    """Go on with the parent's journal, where it handed one over; then it ends with us."""
    path = Path(os.environ.get(VARIABLE, ""))
    if record := path.name and readable_object(path, run_files.Times):
        run = path.parents[1]
        _current[:] = [Journal(RunFolder(run.parent, run.name), record, path)]
        atexit.register(_current[0].close)


def handed_over() -> contextlib.AbstractContextManager[None]:
    """`Journal.handed_over` of this process' journal, if it has one."""
    journal = current()
    return journal.handed_over() if journal else contextlib.nullcontext()


def current() -> Journal | None:
    """This process' journal, if it has one."""
    return _current[0] if _current else None


def phase(name: str) -> contextlib.AbstractContextManager[None]:
    """`Journal.phase` of this process' journal, if it has one."""
    journal = current()
    return journal.phase(name) if journal else contextlib.nullcontext()
