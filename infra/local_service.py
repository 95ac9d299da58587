"""The inference service of a run as a process of this machine.

    {run_name}/service.json              which process answers, since when, for what model
    {run_name}/services.jsonl            what served when, see trainer/serving/history.py
    .runs/{run_name}/service/            lock, the server's config and its ready file
    {logs}/{run_name}/serve.log          what the servers of the run have printed

A new server must be ready and pass its check before it is recorded and the old one
stopped: until then the old one answers.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from infra.server_process import (
    GRACE_SECONDS,
    ServiceError,
    await_ready,
    end,
    launch,
    process_started,
)
from infra.service_client import Address

RUNS = ".runs"
READY_SECONDS = 600.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Service:
    """A server that answers, as service.json holds it."""

    url: str
    pid: int
    process_started: str  # opaque: what tells this process from another with its id
    model: str  # the model's folder on the volume
    name: str  # the model's name in URLs
    model_digest: str
    tokenizer_digest: str
    dtype: str
    figures: dict[str, float]  # what the next revision is compared with: its validation loss
    revision: int  # counts the servers of the run
    started: str  # UTC, ISO 8601
    log: str


Check = Callable[[Service], list[str]]  # problems; none: the server may take over


def start(
    volume: Path,
    run_name: str,
    model: str,
    *,
    port: int = 0,
    timeout_seconds: float = READY_SECONDS,
    logs: str = "logs",
    check: Check | None = None,
    figures: dict[str, float] | None = None,
    config: dict[str, Any] | None = None,
    event: str = "served",
    python: str = sys.executable,
) -> Service:
    """Serve `model` for the run; what served before is stopped once the new one is good.

    Args:
        volume: The volume's root.
        run_name: The run that the service belongs to.
        model: The model's folder on the volume, for instance `{run_name}/final`.
        port: 0 takes a free one.
        timeout_seconds: Until the server must be ready.
        logs: The volume's folder of logs.
        check: Asks the new server and names what is wrong with it.
        figures: Kept in the record, for the check of the next revision.
        config: More of the serve step's configuration.
        event: What the record of what served when calls it.
        python: Interpreter that has the trainer's dependencies.
    Raises:
        ServiceError: The new server ended, was not ready in time, or failed its check.
            It is gone, and what served before serves on.
    """
    volume = volume.resolve()
    folder = volume / RUNS / run_name / "service"
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        old, revision = running(volume, run_name), _last_revision(volume, run_name) + 1
        log = volume / logs / run_name / "serve.log"
        ready_file = folder / f"ready-{revision}.json"
        ready_file.unlink(missing_ok=True)
        step_config = {
            **(config or {}),
            "volume": str(volume),
            "model": model,
            "port": port,
            "ready_file": str(ready_file),
        }
        with _new_server(folder / f"config-{revision}.json", step_config, log, python) as made:
            process, begin = made
            ready = await_ready(process, ready_file, log, begin, timeout_seconds)
            service = Service(
                url=ready["url"],
                pid=process.pid,
                process_started=process_started(process.pid) or "",
                model=model,
                name=ready["name"],
                model_digest=ready["model_digest"],
                tokenizer_digest=ready["tokenizer_digest"],
                dtype=ready["dtype"],
                figures=figures or {},
                revision=revision,
                started=_now(),
                log=str(log),
            )
            if problems := check(service) if check else []:
                raise ServiceError("\n".join(problems))
            _record(volume, run_name, service, event)
    if old:
        end(old.pid, old.process_started, GRACE_SECONDS)
    return service


def running(volume: Path, run_name: str) -> Service | None:
    """The run's service, if its process lives."""
    service = _recorded(volume, run_name)
    if service and process_started(service.pid) == service.process_started:
        return service
    return None


def stop(volume: Path, run_name: str, grace_seconds: float = GRACE_SECONDS) -> bool:
    """Stop the run's service, letting it finish what it has; whether there was one."""
    service = running(volume, run_name)
    if service is None:
        return False
    end(service.pid, service.process_started, grace_seconds)
    (volume / run_name / "service.json").unlink(missing_ok=True)
    _append(volume, run_name, {"event": "stopped", "revision": service.revision, "time": _now()})
    return True


@contextlib.contextmanager
def serving_for_a_while(volume: Path, model: str, **config: Any) -> Iterator[Address]:
    """Serve a model beside the run's service, as long as the block runs.

    Args:
        config: More of the serve step's configuration.
    Raises:
        ServiceError: Its server did not become ready.
    """
    with tempfile.TemporaryDirectory(prefix="finetune-ask-") as place:
        ready_file, log = Path(place) / "ready.json", Path(place) / "serve.log"
        step_config = {"model": model, **config, "volume": str(volume.resolve())}
        step_config["ready_file"] = str(ready_file)
        config_file = Path(place) / "config.json"
        with _new_server(config_file, step_config, log, sys.executable) as (process, begin):
            ready = await_ready(process, ready_file, log, begin, READY_SECONDS)
            try:
                yield Address(ready["url"], ready["name"])
            finally:
                end(process.pid, process_started(process.pid), GRACE_SECONDS)


@contextlib.contextmanager
def _new_server(
    config_file: Path, config: dict[str, Any], log: Path, python: str
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A server's process and where its part of the log begins; ended if the block fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    process, begin = launch(config_file, config, log, python)
    try:
        yield process, begin
    except BaseException:  # a Ctrl-C too: no server is left that nobody knows of
        end(process.pid, process_started(process.pid), GRACE_SECONDS)
        process.wait()
        raise


# --- records ----------------------------------------------------------------------------


def _recorded(volume: Path, run_name: str) -> Service | None:
    try:
        text = (volume / run_name / "service.json").read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    return Service(**json.loads(text))


def _last_revision(volume: Path, run_name: str) -> int:
    try:
        with open(volume / run_name / "services.jsonl", encoding="utf-8") as history:
            return max((json.loads(line)["revision"] for line in history), default=0)
    except FileNotFoundError:
        return 0


def _record(volume: Path, run_name: str, service: Service, event: str) -> None:
    path = volume / run_name / "service.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(dataclasses.asdict(service), indent=1), encoding="utf-8")
    os.replace(beside, path)
    entry = {"event": event, **dataclasses.asdict(service), "time": service.started}
    _append(volume, run_name, entry)


def _append(volume: Path, run_name: str, entry: dict[str, Any]) -> None:
    with open(volume / run_name / "services.jsonl", "a", encoding="utf-8") as history:
        history.write(json.dumps(entry) + "\n")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One start at a time for each run; a killed one holds nothing."""
    with open(folder / "lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
