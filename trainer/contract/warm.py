"""Start `python -m MODULE` from a warm parent: a process that has torch loaded already, and forks.

A step's imports take seconds before it does anything. A warm parent (trainer/warm_parent.py)
pays for them once; each step is then a fork of it. It exits with the process that started it;
the steps do not. Where there is none, or the fork would not equal a fresh interpreter, the step
is started as a process of its own. `FINETUNE_WARM_PARENT=off` does that always.

A request is one connection: length and JSON from here, with file descriptors beside it; then
`{"pid": 1}` or `{"cold": "why"}` from there, and `{"code": 0}` when the process has ended.
"""

import contextlib
import hashlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from trainer.contract.json_text import parse_json

VARIABLE = "FINETUNE_WARM_PARENT"  # folder of the parents' sockets, or OFF
OFF = "off"
LENGTH_BYTES = 8
START_SECONDS = 30.0  # of a parent, until it listens; it imports torch after that
POLL_SECONDS = 0.02

# What else than the environment a child takes from its parent, and a fork from the warm one.
LIMITS = (resource.RLIMIT_FSIZE, resource.RLIMIT_AS, resource.RLIMIT_DATA, resource.RLIMIT_NOFILE)


class Process(Protocol):
    """A started process: what its starter needs of `subprocess.Popen`."""

    pid: int

    def poll(self) -> int | None: ...
    def wait(self) -> int: ...


class WarmProcess:
    """A fork of the warm parent, seen from the process that asked for it."""

    def __init__(self, connection: socket.socket, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._connection = connection

    def poll(self) -> int | None:
        """The exit code; minus the signal that killed it; None while it runs."""
        if self.returncode is None:
            with contextlib.suppress(BlockingIOError):
                self._read(socket.MSG_DONTWAIT)
        return self.returncode

    def wait(self) -> int:
        """The exit code, once there is one."""
        while self.returncode is None:
            self._read(0)
            if self.returncode is None:
                time.sleep(POLL_SECONDS)
        return self.returncode

    def _read(self, flags: int) -> None:
        try:
            line = self._connection.recv(1024, flags)
        except ConnectionError:
            line = b""
        if line:
            self.returncode = parse_json(line)["code"]
        elif not _runs(self.pid):
            # The parent was killed: nobody can learn the exit code any more, only the end.
            self.returncode = -signal.SIGKILL


def start(
    module: str,
    arguments: Sequence[str],
    *,
    environment: Mapping[str, str],
    output: int,
    python: str = sys.executable,
    stdin: int = subprocess.DEVNULL,
    inherited: Sequence[int] = (),
    pid_file: Path | None = None,
) -> Process:
    """Start `python -m module arguments` in a session of its own.

    Args:
        environment: All of its environment.
        output: Descriptor that it writes to, its errors too.
        stdin: Descriptor that it reads from.
        inherited: Descriptors that stay open in it, such as locks.
        pid_file: Gets its process id before the module runs.
    """
    request = {"module": module, "arguments": list(arguments), "environment": {**environment}}
    with contextlib.ExitStack() as opened:
        if stdin == subprocess.DEVNULL:
            stdin = os.open(os.devnull, os.O_RDONLY)
            opened.callback(os.close, stdin)
        files = [stdin, output, output, *inherited]
        warm = _ask_parent(python, request, files, pid_file)
        return warm or _start_cold(python, module, arguments, environment, files, pid_file)


def _start_cold(
    python: str,
    module: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    files: Sequence[int],
    pid_file: Path | None,
) -> "subprocess.Popen[bytes]":
    command = [python, "-P", "-m", module, *arguments]
    if pid_file is not None:
        # The shell writes its own process id before it becomes the step, so there is no
        # moment at which the step runs and its id is not on disk.
        command = ["/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"', str(pid_file), *command]
    return subprocess.Popen(
        command,
        stdin=files[0],
        stdout=files[1],
        stderr=files[2],
        pass_fds=files[3:],
        env=dict(environment),
        start_new_session=True,
    )


def _ask_parent(
    python: str, request: dict[str, Any], files: Sequence[int], pid_file: Path | None
) -> WarmProcess | None:
    """The process as the warm parent started it; None where it is to be started cold."""
    place = socket_of(python)
    if place is None:
        return None
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(place))
        asked = json.dumps({**request, **inheritance(), "pid_file": pid_file and str(pid_file)})
        data = asked.encode()
        socket.send_fds(connection, [len(data).to_bytes(LENGTH_BYTES, "big")], list(files))
        connection.sendall(data)
        answer = parse_json(connection.recv(1024) or b"{}")
    except OSError:  # it was killed, or ended with its owner
        answer = {}
    if "pid" not in answer:
        connection.close()
        return None
    return WarmProcess(connection, answer["pid"])


def inheritance() -> dict[str, Any]:
    """What a child takes from its parent beside the environment and descriptors, as JSON."""
    return {
        "folder": os.getcwd(),
        "umask": _umask(),
        "niceness": os.getpriority(os.PRIO_PROCESS, 0),
        "cores": sorted(os.sched_getaffinity(0)),
        "limits": [list(resource.getrlimit(which)) for which in LIMITS],
        "ids": [*os.getresuid(), *os.getresgid(), *os.getgroups()],
        "namespaces": sorted(os.readlink(path) for path in Path("/proc/self/ns").iterdir()),
    }


def _umask() -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    return os.umask(os.umask(0o022))  # a kernel before 4.7


class _Parents:
    """The warm parents that this process started: one for each interpreter."""

    def __init__(self) -> None:
        self.folder: Path | None = None
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    def end(self) -> None:
        for process in self._started.values():
            process.kill()
            process.communicate()
        self._started, self.folder = {}, None

    def ensure(self, python: str, place: Path, *options: str) -> bool:
        """Have the interpreter's parent listen at `place`; whether it does."""
        process = self._started.get(python)
        if process is not None:
            return process.poll() is None
        process = self._started[python] = subprocess.Popen(
            [python, "-P", "-m", "trainer.warm_parent", str(place), *options],
            stdin=subprocess.PIPE,  # closed by the end of this process, however it ends
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
        until = time.monotonic() + START_SECONDS
        while not place.exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(POLL_SECONDS)
        return place.exists()


_parents = _Parents()


@contextlib.contextmanager
def warm_parents() -> Iterator[None]:
    """Start steps of this process, and of those that it starts, from warm parents in the block.

    After it the parents exit; the steps that they started continue.
    """
    if os.environ.get(VARIABLE) or not sys.platform.startswith("linux"):
        yield  # another process has them, or nobody is to
        return
    with tempfile.TemporaryDirectory(prefix="finetune-warm-") as folder:
        _parents.folder, os.environ[VARIABLE] = Path(folder), folder
        try:
            yield
        finally:
            _parents.end()
            del os.environ[VARIABLE]


def socket_of(python: str, *options: str) -> Path | None:
    """Where the interpreter's warm parent listens; None where none does.

    Args:
        options: For a parent that this process owns, and starts now.
    """
    folder = os.environ.get(VARIABLE, "")
    if not folder or folder == OFF:
        return None
    place = Path(folder) / f"{hashlib.sha256(python.encode()).hexdigest()[:16]}.socket"
    if str(_parents.folder) == folder:
        return place if _parents.ensure(python, place, *options) else None
    return place if place.exists() else None


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
