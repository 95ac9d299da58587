"""The inference service of a run as a process of this machine, and how to ask it.

    {run_name}/service.json              which process answers, since when, for what model
    {run_name}/services.jsonl            every server that took over, the newest last
    .runs/{run_name}/service/            lock, the server's config and its ready file
    {logs}/{run_name}/serve.log          what the servers of the run have printed

A new server must be ready and pass its check before it is recorded and the old one
stopped: until then the old one answers. A process id is trusted only together with
the time its process started, so a reused id is never taken for ours.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from shlex import quote
from typing import Any

RUNS = ".runs"
POLL_SECONDS = 0.05
LAST_LINES = 20
GRACE_SECONDS = 30.0  # between asking a server to stop and killing it


class ServiceError(Exception):
    """A server did not start, did not pass its check, or did not answer as it should."""

    def __init__(self, message: str, *, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # of a server that ended by itself


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
    timeout_seconds: float = 600.0,
    logs: str = "logs",
    check: Check | None = None,
    figures: dict[str, float] | None = None,
    config: dict[str, Any] | None = None,
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
        log.parent.mkdir(parents=True, exist_ok=True)
        ready_file = folder / f"ready-{revision}.json"
        ready_file.unlink(missing_ok=True)
        step_config = {
            **(config or {}),
            "volume": str(volume),
            "model": model,
            "port": port,
            "ready_file": str(ready_file),
        }
        process, begin = _launch(folder / f"config-{revision}.json", step_config, log, python)
        try:
            ready = _await_ready(process, ready_file, log, begin, timeout_seconds)
            service = Service(
                url=ready["url"],
                pid=process.pid,
                process_started=_process_started(process.pid) or "",
                model=model,
                name=ready["name"],
                model_digest=ready["model_digest"],
                tokenizer_digest=ready["tokenizer_digest"],
                dtype=ready["dtype"],
                figures=figures or {},
                revision=revision,
                started=datetime.now(UTC).isoformat(timespec="seconds"),
                log=str(log),
            )
            problems = check(service) if check else []
            if problems:
                raise ServiceError("\n".join(problems))
            _record(volume / run_name / "service.json", service)
        except BaseException:  # a Ctrl-C too: no server is left that nobody knows of
            _end(process.pid, _process_started(process.pid), GRACE_SECONDS)
            process.wait()
            raise
    if old:
        _end(old.pid, old.process_started, GRACE_SECONDS)
    return service


def running(volume: Path, run_name: str) -> Service | None:
    """The run's service, if its process lives."""
    service = _recorded(volume, run_name)
    if service and _process_started(service.pid) == service.process_started:
        return service
    return None


def stop(volume: Path, run_name: str, grace_seconds: float = GRACE_SECONDS) -> bool:
    """Stop the run's service, letting it finish what it has; whether there was one."""
    service = running(volume, run_name)
    if service is None:
        return False
    _end(service.pid, service.process_started, grace_seconds)
    (volume / run_name / "service.json").unlink(missing_ok=True)
    return True


def ask(service: Service, prompt: str, *, timeout_seconds: float = 600.0, **parameters: Any) -> str:
    """The service's answer to `prompt`, the prompt not included.

    Raises:
        ServiceError: It refused or did not answer.
    """
    body = {"model": service.name, "prompt": prompt, **parameters}
    with _post(f"{service.url}/v1/completions", body, timeout_seconds) as response:
        return json.load(response)["choices"][0]["text"]


def stream(
    service: Service, prompt: str, *, timeout_seconds: float = 600.0, **parameters: Any
) -> Iterator[str]:
    """The service's answer piece by piece, as it is made; closing this stops it.

    Raises:
        ServiceError: It refused, broke off or did not answer.
    """
    body = {"model": service.name, "prompt": prompt, "stream": True, **parameters}
    with _post(f"{service.url}/v1/completions", body, timeout_seconds) as response:
        for line in response:
            if not line.startswith(b"data: ") or line.strip() == b"data: [DONE]":
                continue
            message = json.loads(line[len(b"data: ") :])
            if "error" in message:
                raise ServiceError(message["error"]["message"])
            for choice in message["choices"]:
                yield choice["text"]


def curl_command(service: Service, prompt: str, max_new_tokens: int = 40) -> str:
    """The shell command that asks the same."""
    body = json.dumps({"parameters": {"max_new_tokens": max_new_tokens}, "instances": [prompt]})
    return (
        f"curl {service.url}/v1/models/{service.name}:predict "
        f"-H 'Content-Type: application/json' -d {quote(body)}"
    )


# --- processes --------------------------------------------------------------------------


def _launch(
    config_file: Path, config: dict[str, Any], log: Path, python: str
) -> tuple[subprocess.Popen[bytes], int]:
    """Start the server in a session of its own; return it and where its part of the log begins."""
    config_file.write_text(json.dumps(config, indent=1), encoding="utf-8")
    with open(log, "ab") as output:
        process = subprocess.Popen(
            [python, "-m", "trainer", "serve", str(config_file)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={
                **os.environ,
                "PYTHONUNBUFFERED": "1",
                # An outcome of its own would overwrite what the step of the run has left.
                "FINETUNE_TERMINATION_PATH": str(config_file.with_name("outcome.json")),
            },
            start_new_session=True,
        )
        return process, output.tell()


def _await_ready(
    process: subprocess.Popen[bytes],
    ready_file: Path,
    log: Path,
    begin: int,
    timeout_seconds: float,
) -> dict[str, Any]:
    deadline = time.monotonic() + timeout_seconds
    while True:
        # The file appears by a rename, so it is whole.
        with contextlib.suppress(FileNotFoundError):
            return json.loads(ready_file.read_text(encoding="utf-8"))
        exit_code = process.poll()
        if exit_code is not None:
            raise ServiceError(
                f"the server ended with exit code {exit_code} before it was ready. "
                f"Its last lines ({log}):\n{_last_lines(log, begin)}",
                exit_code=exit_code,
            )
        if time.monotonic() > deadline:
            raise ServiceError(
                f"the server was not ready within {timeout_seconds:g} seconds. "
                f"Its last lines ({log}):\n{_last_lines(log, begin)}"
            )
        time.sleep(POLL_SECONDS)


def _end(pid: int, process_started: str | None, grace_seconds: float) -> None:
    """Ask the process to stop, then kill it; only while it is the one that was meant."""
    for signum, seconds in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, GRACE_SECONDS)):
        if process_started is None or _process_started(pid) != process_started:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signum)
        deadline = time.monotonic() + seconds
        while _process_started(pid) == process_started and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)


def _process_started(pid: int) -> str | None:
    """When the process began, as its kernel tells it; None where there is none or it ended.

    Source: proc(5), field 22 (starttime) of /proc/pid/stat; `ps` where there is no /proc.
    """
    if Path("/proc/self/stat").exists():
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return None
        fields = stat.rsplit(")", 1)[1].split()  # the name before may hold anything
        return None if fields[0] in "ZX" and _is_reaped(pid) else fields[19]
    listed = subprocess.run(
        ["ps", "-o", "state=,lstart=", "-p", str(pid)], capture_output=True, text=True
    )
    state, _, began = listed.stdout.strip().partition(" ")
    return began.strip() if state and not state.startswith("Z") else None


def _is_reaped(pid: int) -> bool:
    """Whether a zombie is gone for good; a child of ours stays one until it is waited for."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid  # 0: a thread of it has yet to end
    except ChildProcessError:
        return True


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
            return sum(1 for _ in history)
    except FileNotFoundError:
        return 0


def _record(path: Path, service: Service) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(dataclasses.asdict(service), indent=1), encoding="utf-8")
    os.replace(beside, path)
    with open(path.with_name("services.jsonl"), "a", encoding="utf-8") as history:
        history.write(json.dumps(dataclasses.asdict(service)) + "\n")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One start at a time for each run; a killed one holds nothing."""
    with open(folder / "lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _last_lines(log: Path, begin: int) -> str:
    with open(log, "rb") as file:
        file.seek(begin)
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    return "\n".join(lines[-LAST_LINES:])


# --- requests ---------------------------------------------------------------------------


def _post(url: str, body: dict[str, Any], timeout_seconds: float) -> Any:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    # The service is on this machine: no proxy of the environment comes between.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        return opener.open(request, timeout=timeout_seconds)
    except urllib.error.HTTPError as error:
        raise ServiceError(f"{url} answered {error.code}: {error.read().decode()}") from error
    except urllib.error.URLError as error:
        raise ServiceError(f"{url} does not answer ({error.reason}).") from error
