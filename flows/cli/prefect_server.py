"""Prefect's own server for the time of one run, where no other was named.

Prefect would start one by itself, but in our process group: Ctrl-C on a terminal would
end it before the run has said how it ended, and a killed run would leave it behind.
Here it has a session of its own, and a guard that ends it when our end of a pipe
closes, however we ended. Should the guard be killed, too, the server sees the same end itself.
"""

import contextlib
import os
import random
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator

from trainer.contract.errors import RequestError, StepError

LOOPBACK = ("127.0.0.1", "localhost")
READY_SECONDS = 180.0
STOP_SECONDS = 10.0
SERVE = "serve"
# Linux gives those from 32768 on, macOS from 49152, to a process that asks for any: until a
# server has loaded and listens on one of those, another process may have it.
PORTS = range(20_000, 32_000)
BUSY_SECONDS = 30.0  # a server whose SQLite waits for a slow disk was silent for as long


@contextlib.contextmanager
def embedded_server() -> Iterator[str]:
    """The API's URL of a server on loopback that ends with the block, or with this process.

    Raises:
        StepError: It did not start.
    """
    keep_proxies_off_loopback()
    port = free_port()
    with tempfile.TemporaryFile() as log:
        guard = subprocess.Popen(
            [sys.executable, "-P", "-m", "flows.cli.prefect_server", str(port)],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            url = f"http://127.0.0.1:{port}/api"
            deadline = time.monotonic() + READY_SECONDS
            while not answers(url):
                late = time.monotonic() > deadline
                if late or guard.poll() is not None:
                    log.seek(0)
                    said = log.read().decode(errors="replace")[-2000:]
                    how = f"did not answer within {READY_SECONDS:.0f} s" if late else "ended"
                    raise StepError(f"Prefect's embedded server {how}. It said:\n{said}")
                time.sleep(0.1)
            yield url
        finally:
            assert guard.stdin is not None
            guard.stdin.close()
            guard.wait()


def free_port() -> int:
    """A port of loopback on which nobody listens, for a process that takes a while to start."""
    draw = random.SystemRandom()  # not the usual sequence, which a library may have seeded
    while True:
        port = draw.choice(PORTS)
        with contextlib.suppress(OSError), socket.socket() as tried:
            tried.bind(("127.0.0.1", port))
            return port


def keep_proxies_off_loopback() -> None:
    """Have this process and what it starts reach servers of this machine without a proxy.

    Prefect's clients, and ours of a model's server, take proxies from the environment.
    """
    names = ("no_proxy", "NO_PROXY")  # some read the one, some the other
    known = ",".join(os.environ.get(name, "") for name in names).split(",")
    together = dict.fromkeys(host.strip() for host in (*known, *LOOPBACK) if host.strip())
    for name in names:
        os.environ[name] = ",".join(together)


def answers(url: str) -> bool:
    """Whether a Prefect server is at this API address.

    Raises:
        RequestError: It is no address.
    """
    # No proxy can reach a server of this machine.
    proxies: dict[str, str] | None = {} if _host(url) in LOOPBACK else None
    opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies))
    try:
        with opener.open(f"{url}/health", timeout=BUSY_SECONDS) as response:
            return response.status == 200
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def _host(url: str) -> str:
    try:
        parts = urllib.parse.urlsplit(url)
        is_address = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # its port is no number, ...
        is_address = False
    if not is_address:
        raise RequestError(
            f"PREFECT_API_URL is no address of an API (got {url!r}). It looks like "
            "http://127.0.0.1:4200/api. Correct it, or unset it to use an embedded server."
        )
    return str(parts.hostname)


def guard_server(port: str) -> None:
    """Run the server until standard input is at its end or the server stops by itself."""
    command = [sys.executable, "-P", "-m", "flows.cli.prefect_server", SERVE, port]
    server = subprocess.Popen(command)  # its standard input is ours: see `serve`
    # When the server ends first, nobody is left to wait for.
    signal.signal(signal.SIGCHLD, lambda signum, frame: os._exit(1))
    _until_end_of_input()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    server.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.wait(STOP_SECONDS)
    os.killpg(0, signal.SIGKILL)  # all of this session: the server and what it started


def serve(port: str) -> None:
    """Be the server, and end when standard input does, should the guard be gone by then."""
    threading.Thread(target=_end_with_input, args=(os.getppid(),), daemon=True).start()
    sys.argv = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", port]
    sys.argv.append("--no-services")
    runpy.run_module("prefect", run_name="__main__", alter_sys=True)


def _end_with_input(guard: int) -> None:
    """End this process some seconds after its standard input, as nobody else may do it."""
    _until_end_of_input()
    if os.getppid() != guard:  # killed: it can't tell us
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_SECONDS)
    os.killpg(0, signal.SIGKILL)


def _until_end_of_input() -> None:
    while os.read(0, 1):
        pass


if __name__ == "__main__":
    if sys.argv[1] == SERVE:
        serve(sys.argv[2])
    else:
        guard_server(sys.argv[1])
