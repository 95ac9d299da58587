"""A real Prefect server and process worker on loopback, ended by the test that started them."""

import contextlib
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from flows.cli.prefect_server import answers, free_port

READY_SECONDS = 500
PREFECT = [sys.executable, "-m", "prefect"]


def prefect_environment(folder: Path, api_url: str | None = None) -> dict[str, str]:
    """An environment in which Prefect keeps to `folder`, and to the server at `api_url`."""
    environment = {name: v for name, v in os.environ.items() if not name.startswith("PREFECT_")}
    environment |= {
        "PREFECT_HOME": str(folder),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_CLI_PROMPT": "false",
        "DO_NOT_TRACK": "1",
        "NO_COLOR": "1",
        "COLUMNS": "200",
    }
    if api_url:
        environment["PREFECT_API_URL"] = api_url
    return environment


def on_a_terminal(command: list[str], environment: dict[str, str], folder: Path) -> str:
    """What a command writes on a pseudo-terminal whose user answers no question.

    The terminal's input is at its end: a command that asks something fails.
    """
    ours, theirs = pty.openpty()
    os.write(ours, b"\x04")
    terminal = {n: v for n, v in environment.items() if n not in ("PREFECT_CLI_PROMPT", "NO_COLOR")}
    with open(theirs, "r+b", buffering=0) as end:
        process = subprocess.Popen(
            command, env=terminal | {"TERM": "xterm"}, cwd=folder, stdin=end, stdout=end, stderr=end
        )
    written = b""
    with contextlib.suppress(OSError):  # EIO: the last process has closed its end
        while read := os.read(ours, 65536):
            written += read
    os.close(ours)
    text = written.decode(errors="replace")
    assert process.wait(60) == 0, text
    return text


@contextlib.contextmanager
def prefect_server(folder: Path) -> Iterator[str]:
    """The API's URL of a server that keeps its database in `folder`."""
    port = free_port()
    url = f"http://127.0.0.1:{port}/api"
    command = [*PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    # Else its pages ask the port that is usual.
    environment = prefect_environment(folder) | {"PREFECT_UI_API_URL": url}
    with _process(command, environment, folder / "server.log") as server:
        deadline = time.monotonic() + READY_SECONDS
        while not answers(url):
            assert server.poll() is None, (folder / "server.log").read_text()
            assert time.monotonic() < deadline, "the Prefect server did not get ready"
            time.sleep(0.2)
        yield url


@contextlib.contextmanager
def process_worker(folder: Path, api_url: str, pool: str, **variables: str) -> Iterator[None]:
    """A worker of processes on the pool, which it makes."""
    with worker(folder, api_url, pool, "process", **variables):
        yield


@contextlib.contextmanager
def worker(folder: Path, api_url: str, pool: str, kind: str, **variables: str) -> Iterator[None]:
    """A worker of that kind on the pool."""
    environment = {**prefect_environment(folder, api_url), **variables}
    command = [*PREFECT, "worker", "start", "--pool", pool, "--type", kind]
    with _process(command, environment, folder / "worker.log"):
        yield


@contextlib.contextmanager
def _process(
    command: list[str], environment: dict[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    with open(log, "ab") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(15)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
