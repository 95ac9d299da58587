"""The processes that make pieces, on all cores.

    with Crew(exported_tokenizer) as crew:
        crew.begin(recipe, batches)
        while crew.busy: ... crew.done(wait=True)

One process is started, which loads the tokenizer and forks the others: a tokenizer takes
half a second and 100 MB, once. At most four work, for the sake of memory; more cores
encode inside them.
"""

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainer.contract.errors import RequestError, StepError
from trainer.contract.json_text import parse_json
from trainer.devices import available_cores
from trainer.tokens.encode.apart import child_environment
from trainer.tokens.encode.worker import Recipe
from trainer.tokens.text.documents import Part

MOST_WORKERS = 4
ALONE_BYTES = 4 << 20
"""Less than this is encoded in the step's own process: others would take longer to start."""
_QUEUED = 2
"""Tasks a worker holds, so that it never waits for the next."""

Batch = list[tuple[Part, str, str]]
"""Parts to make pieces of, each with its source's stamp and the piece's path."""


class Crew:
    """Worker processes that make pieces with one recipe; they start when they are needed."""

    def __init__(self, tokenizer: Path, workers: int = 0) -> None:
        """Begin with the exported tokenizer; 0 workers: as many as cores and memory allow."""
        workers = workers or min(available_cores(), MOST_WORKERS)
        self._tokenizer, self._workers = str(tokenizer), workers
        self._process: subprocess.Popen | None = None
        self._sockets: list[socket.socket] = []
        self._received = [b""] * workers  # of each, not yet a whole line
        self._queues: list[list[Batch]] = [[] for _ in range(workers)]
        self._selector = selectors.DefaultSelector()

    def start(self) -> None:
        """Start the processes, unless they were: they load the tokenizer meanwhile."""
        if self._process:
            return
        pairs = [socket.socketpair() for _ in range(self._workers)]
        theirs = [pair[1].fileno() for pair in pairs]
        threads = max(1, available_cores() // self._workers)
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                "trainer.tokens.encode.worker",
                self._tokenizer,
                *map(str, theirs),
            ],
            pass_fds=theirs,
            stdin=subprocess.DEVNULL,
            env={**child_environment(), "RAYON_NUM_THREADS": str(threads)},
            process_group=0,  # so that all of them can be ended together
        )
        for _, their in pairs:
            their.close()
        self._sockets = [ours for ours, _ in pairs]
        for index, ours in enumerate(self._sockets):
            self._selector.register(ours, selectors.EVENT_READ, index)

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *failure: object) -> None:
        self._selector.close()
        if not self._process:
            return
        if failure[0]:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        for ours in self._sockets:
            ours.close()  # which ends the worker
        self._process.wait()

    def ask(self, task: dict[str, Any]) -> dict[str, Any]:
        """Have one worker do one task."""
        self.start()
        self._send(0, task)
        while not (replies := self._receive(0)):
            pass
        return replies[0]

    def begin(self, recipe: Recipe, batches: Iterator[Batch]) -> None:
        """Begin to make all pieces."""
        self.start()
        self._recipe, self._left = asdict(recipe), batches
        for _ in range(_QUEUED):
            for index in range(len(self._sockets)):
                self._queue(index)

    @property
    def busy(self) -> bool:
        """Whether there are pieces that are not made."""
        return any(self._queues)

    def done(self, wait: bool) -> Iterator[tuple[Batch, int]]:
        """Batches that are done since it was asked last, each with its number of ids.

        Args:
            wait: For at least one.
        Raises:
            RequestError: A file is not what it should be; the first to be found.
        """
        for key, _ in self._selector.select(None if wait else 0):
            for reply in self._receive(key.data):
                batch = self._queues[key.data].pop(0)
                self._queue(key.data)
                yield batch, reply["ids"]

    def _queue(self, index: int) -> None:
        batch = next(self._left, None)
        if batch is not None:
            self._queues[index].append(batch)
            self._send(index, {"recipe": self._recipe, "make": batch})

    def _send(self, index: int, task: dict[str, Any]) -> None:
        try:
            self._sockets[index].sendall(json.dumps(task).encode() + b"\n")
        except (BrokenPipeError, ConnectionResetError) as error:
            raise StepError(self._ended()) from error

    def _receive(self, index: int) -> list[dict[str, Any]]:
        """The replies that arrive next, none where the next is not whole yet."""
        try:
            received = self._sockets[index].recv(1 << 16)
        except ConnectionResetError:
            received = b""
        if not received:
            raise StepError(self._ended())
        *lines, self._received[index] = (self._received[index] + received).split(b"\n")
        replies = [parse_json(line) for line in lines]
        for reply in replies:
            if "refused" in reply:
                raise RequestError(*reply["refused"])
            if "failed" in reply:
                raise StepError(reply["failed"])
            if "os_error" in reply:
                raise OSError(*reply["os_error"])
        return replies

    def _ended(self) -> str:
        code = self._process.poll() if self._process else None
        told = f" with exit code {code}" if code else ", perhaps for lack of memory"
        return f"A process that encodes ended{told}. Run it again to resume."
