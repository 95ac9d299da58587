"""A process that has torch and transformers loaded, and forks steps.

Run: `python -m trainer.warm_parent SOCKET`, by trainer/contract/warm.py, which has the protocol.
It loads torch from the first tokenize step on: a run that has nothing left to do does not pay for
it. It has one thread and computes nothing, so a fork of it is what a fresh interpreter is after the
same imports. It exits when its standard input ends, which its owner holds; its children stay.
Cost: a fork takes 0.02 s and shares the 400 MB of the parent.
"""

import contextlib
import gc
import importlib
import json
import os
import resource
import runpy
import selectors
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.contract.json_text import parse_json
from trainer.contract.warm import LENGTH_BYTES, LIMITS, inheritance

# Steps that need no torch, and those after which a run may need none either.
LIGHT, IDLE = ("fetch", "plan", "tokenize"), ("fetch", "plan")
# What the other steps import.
PRELOADED = (
    "torch",
    "transformers.modeling_utils",
    "trainer.training.process",
    "trainer.evaluation.step",
    "trainer.serving.step",
    "trainer.serving.server",
)
# Read while modules load: where one differs, a fork would not be what a fresh process is.
READ_AT_IMPORT = tuple(
    (
        "PYTHON LD_ OMP_ MKL_ KMP_ GOMP_ OPENBLAS MALLOC_ TORCH PYTORCH CUDA NVIDIA HIP ROCR HF_ "
        "HUGGINGFACE TRANSFORMERS_ TOKENIZERS_ SAFETENSORS_ ACCELERATE_ USE_ DS_ PEFT_ TRITON "
        "HOME XDG_ LANG LC_ TZ TMPDIR"
    ).split()
)
MOST_FILES = 16
_SAME = ("PYTHONUNBUFFERED",)  # 1 here, and in each request


@dataclass(frozen=True)
class Request:
    """What to become: the fields that trainer/contract/warm.py sends, and its descriptors."""

    asked: dict[str, Any]
    files: list[int]


class Parent:
    """Listens, imports, forks, and tells the asker how a process ended."""

    def __init__(self, place: str, *, loading: bool = False) -> None:
        self._environment = dict(os.environ)
        self._left, self._loading = list(PRELOADED), loading
        self._children: dict[int, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        self._ended = False
        self._wake, self._woken = socket.socketpair()
        for end in (self._wake, self._woken):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(f"{place}.part")
        os.chmod(f"{place}.part", 0o600)
        self._listener.listen(64)
        os.rename(f"{place}.part", place)  # a socket of this name takes connections
        for readable, action in (
            (self._listener, self._take),
            (self._woken, self._reap),
            (sys.stdin, self._owner_is_gone),
        ):
            self._selector.register(readable, selectors.EVENT_READ, action)

    def serve(self) -> Request | None:
        """Serve until the owner is gone (None), or as a fork: what it is to become."""
        while not self._ended:
            busy = self._loading and self._left
            ready = self._selector.select(0 if busy else None)
            for key, _ in ready:
                if (request := key.data()) is not None:
                    return request
            if not ready and busy:
                self._load_next()
        return None

    def _load_next(self) -> None:
        importlib.import_module(self._left.pop(0))
        gc.collect()
        gc.freeze()  # what is loaded stays shared by all forks

    def _owner_is_gone(self) -> None:
        self._ended = not os.read(0, 64)

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._woken.recv(4096)
        for pid in list(self._children):
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                code = os.waitstatus_to_exitcode(status)
                with self._children.pop(pid) as connection, contextlib.suppress(OSError):
                    connection.send(json.dumps({"code": code}).encode())

    def _take(self) -> Request | None:
        """Fork as the next connection asks; the request in the fork, None in the parent."""
        connection, _ = self._listener.accept()
        with contextlib.suppress(OSError, ValueError):
            request = _receive(connection)
            step = (request.asked["arguments"] or [""])[0]
            self._loading |= step not in IDLE
            while self._left and step not in LIGHT:
                self._load_next()
            if why := self._differs(request.asked):
                connection.send(json.dumps({"cold": why}).encode())
            else:
                pid = os.fork()
                if pid == 0:
                    connection.close()
                    self._forget()
                    return request
                self._children[pid] = connection
                connection.send(json.dumps({"pid": pid}).encode())
            for number in request.files:
                os.close(number)
        if connection not in self._children.values():
            connection.close()
        return None

    def _differs(self, asked: dict[str, Any]) -> str:
        """Why a fork would not be what a fresh interpreter is; '' if it would."""
        theirs, ours = asked["environment"], self._environment
        for name in sorted({*theirs, *ours} - {*_SAME}):
            if name.startswith(READ_AT_IMPORT) and theirs.get(name) != ours.get(name):
                return f"{name} differs"
        own = inheritance()
        if any(asked[name] != own[name] for name in ("ids", "namespaces")):
            return "it runs as somebody else, or elsewhere"
        torch = sys.modules.get("torch")
        if torch is not None and (torch.version.cuda or torch.version.hip):
            return "its torch is built for GPUs, whose driver does not survive a fork"
        return ""

    def _forget(self) -> None:
        """Close in a fork what is the parent's alone."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._selector.close()
        for theirs in (self._listener, self._wake, self._woken, *self._children.values()):
            theirs.close()


def _receive(connection: socket.socket) -> Request:
    head, files, _, _ = socket.recv_fds(connection, LENGTH_BYTES, MOST_FILES)
    length, data = int.from_bytes(head, "big"), b""
    while len(data) < length:
        if not (more := connection.recv(length - len(data))):
            raise ValueError("the request was cut off")
        data += more
    return Request(parse_json(data), files)


def become(request: Request) -> None:
    """Turn this fork into `python -m MODULE`; does not return."""
    asked = request.asked
    os.setsid()
    if asked["pid_file"]:
        Path(asked["pid_file"]).write_text(f"{os.getpid()}\n")
    for number, file in enumerate(request.files[:3]):
        os.dup2(file, number)
        os.close(file)
    for file in request.files[3:]:
        os.set_inheritable(file, True)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    os.umask(asked["umask"])
    os.sched_setaffinity(0, asked["cores"])
    os.setpriority(os.PRIO_PROCESS, 0, asked["niceness"])
    for which, limits in zip(LIMITS, asked["limits"], strict=True):
        resource.setrlimit(which, tuple(limits))
    sys.argv = [asked["module"], *asked["arguments"]]
    runpy.run_module(asked["module"], run_name="__main__", alter_sys=True)


def main(place: str, *options: str) -> None:
    request = Parent(place, loading="--load" in options).serve()
    if request is not None:
        become(request)


if __name__ == "__main__":
    main(*sys.argv[1:])
