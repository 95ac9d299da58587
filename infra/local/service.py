"""The inference service of a run as a process of this machine.

    {run_name}/service.json, services.jsonl   see service_records.py
    .runs/{run_name}/service/            lock, the server's config and its ready file
    {logs}/{run_name}/serve.log          what the servers of the run have printed

A new server must be ready and pass its check before it is recorded and the old one
told to stop: until then the old one answers. It finishes what it has and ends by itself,
which may take as long as its longest answer; nobody waits for it. A deploy that is killed meanwhile
leaves one server, the recorded one: the other ends by itself.
"""

import contextlib
import dataclasses
import fcntl
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from infra.local.server_process import (
    GRACE_SECONDS,
    ServiceError,
    await_ready,
    end,
    launched,
    tell,
)
from infra.local.service_client import Address
from infra.local.service_records import (
    Service,
    last_revision,
    record,
    record_file,
    record_stop,
    recorded,
)
from infra.local.step_folder import writing
from trainer.contract import adapters_record, warm
from trainer.contract.adapters_record import Wanted
from trainer.contract.process_time import process_started
from trainer.contract.sealed_folder import read_manifest

RUNS = ".runs"
READY_SECONDS = 600.0
LEAVING_SECONDS = 1.0  # for who has just read the old address to have asked there
PROBE_BYTES = 64 * 1024


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
        PlaceError: The same, and the volume can't be written.
    """
    volume = volume.resolve()
    folder = volume / RUNS / run_name / "service"
    with _locked(volume, folder):
        old, revision = running(volume, run_name), last_revision(volume, run_name) + 1
        log = volume / logs / run_name / "serve.log"
        ready_file = folder / f"ready-{revision}.json"
        step_config = {
            **(config or {}),
            "volume": str(volume),
            "model": model,
            "port": port,
            "ready_file": str(ready_file),
            "record_file": str(record_file(volume, run_name)),
        }
        if step_config.get("adapters"):
            step_config["adapters_file"] = str(adapters_file(volume, run_name, revision))
            with writing(volume):
                _write_adapters(volume, Path(step_config["adapters_file"]), step_config["adapters"])
        config_file = folder / f"config-{revision}.json"
        with writing(volume):
            ready_file.unlink(missing_ok=True)
            _prepare(config_file, step_config, log)
        with _new_server(config_file, log, python) as (process, begin):
            ready = _ready(process, ready_file, log, begin, timeout_seconds, volume)
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
                config=config or {},
            )
            if problems := check(service) if check else []:
                raise ServiceError("\n".join(problems))
            with writing(volume):
                record(volume, run_name, service, event)
    if old:
        time.sleep(LEAVING_SECONDS)
        tell(old.pid, old.process_started)
    return service


def adapters_file(volume: Path, run_name: str, revision: int) -> Path:
    """What the server of that revision follows, where it has adapters beside its model."""
    return volume.resolve() / RUNS / run_name / "service" / f"adapters-{revision}.json"


def _write_adapters(volume: Path, path: Path, adapters: dict[str, str]) -> None:
    """Write down which version of each adapter the server begins with."""
    wanted = {
        name: Wanted(model=model, digest=read_manifest(volume / model).digest)
        for name, model in adapters.items()
    }
    adapters_record.write(path, wanted)


def note_adapters(
    volume: Path, run_name: str, service: Service, adapters: Mapping[str, Wanted]
) -> None:
    """Write down that a running server answers with other adapters now."""
    models = {name: wanted.model for name, wanted in adapters.items()}
    config = {**service.config, "adapters": {**service.config["adapters"], **models}}
    with writing(volume):
        now = dataclasses.replace(service, config=config)
        record(volume.resolve(), run_name, now, "adapters replaced")


def locked(volume: Path, run_name: str) -> contextlib.AbstractContextManager[None]:
    """One change at a time of a run's service."""
    return _locked(volume, volume.resolve() / RUNS / run_name / "service")


def running(volume: Path, run_name: str) -> Service | None:
    """The run's service, if its process lives."""
    service = recorded(volume, run_name)
    if service and process_started(service.pid) == service.process_started:
        return service
    return None


def stop(volume: Path, run_name: str, grace_seconds: float | None = GRACE_SECONDS) -> bool:
    """Stop the run's service, letting it finish what it has; whether there was one.

    Args:
        volume: The volume's root.
        run_name: The run that the service belongs to.
        grace_seconds: Until it is killed; None: it ends by itself, and is not waited for.
    Raises:
        PlaceError: It was stopped, and the volume can't be written.
    """
    service = running(volume, run_name)
    if service is None:
        return False
    if grace_seconds is None:
        tell(service.pid, service.process_started)
    else:
        end(service.pid, service.process_started, grace_seconds)
    with writing(volume):
        record_stop(volume, run_name, service, _now())
    return True


@contextlib.contextmanager
def serving_for_a_while(
    volume: Path, model: str, *, log: Path | None = None, **config: Any
) -> Iterator[Address]:
    """Serve a model beside the run's service, as long as the block runs.

    Args:
        volume: The volume's root.
        model: The model's folder there.
        log: What the server prints is added to this file of the volume; None: it is not kept.
        config: More of the serve step's configuration.
    Raises:
        ServiceError: Its server did not become ready.
        PlaceError: The same, and the volume can't be written.
    """
    with tempfile.TemporaryDirectory(prefix="finetune-ask-") as place:
        ready_file, config_file = Path(place) / "ready.json", Path(place) / "config.json"
        step_config = {"model": model, **config, "volume": str(volume.resolve())}
        step_config["ready_file"] = str(ready_file)
        step_config["record_file"] = str(Path(place) / "never.json")  # it takes nothing over
        written = writing(volume) if log else contextlib.nullcontext()
        log = log or Path(place) / "serve.log"
        with written:
            _prepare(config_file, step_config, log)
        with _new_server(config_file, log, sys.executable) as (process, begin):
            ready = _ready(process, ready_file, log, begin, READY_SECONDS, volume)
            try:
                yield Address(ready["url"], ready["name"], config.get("api_key_variable", ""))
            finally:
                end(process.pid, process_started(process.pid), GRACE_SECONDS)


def _prepare(config_file: Path, config: dict[str, Any], log: Path) -> None:
    """Write what the server's process finds as it starts."""
    log.parent.mkdir(parents=True, exist_ok=True)
    _try_to_write(log.with_name(".probe"))
    log.touch()
    config_file.write_text(json.dumps(config, indent=1), encoding="utf-8")


@contextlib.contextmanager
def _new_server(config_file: Path, log: Path, python: str) -> Iterator[tuple[warm.Process, int]]:
    """A server's process and where its part of the log begins; ended if the block fails.

    After the block it is left to its record: without one it ends.
    """
    with launched(config_file, log, python) as (process, begin):
        try:
            yield process, begin
        except BaseException:  # a Ctrl-C too: no server is left that nobody knows of
            end(process.pid, process_started(process.pid), GRACE_SECONDS)
            process.wait()
            raise


def _ready(
    process: warm.Process,
    ready_file: Path,
    log: Path,
    begin: int,
    timeout_seconds: float,
    volume: Path,
) -> dict[str, Any]:
    try:
        return await_ready(process, ready_file, log, begin, timeout_seconds)
    except ServiceError:
        if log.is_relative_to(volume):  # where it is full, the server could say so nowhere
            with writing(volume):
                _try_to_write(log.with_name(".probe"))
        raise


def _try_to_write(probe: Path) -> None:
    try:
        probe.write_bytes(bytes(PROBE_BYTES))
    finally:
        probe.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(volume: Path, folder: Path) -> Iterator[None]:
    """One start at a time for each run; a killed one holds nothing."""
    with writing(volume):
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "lock", "w", encoding="utf-8")  # noqa: SIM115 - closed below
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
