"""The processes that make pieces, on all cores.

    with Crew(recipe, workers) as crew:
        for done in crew.make(batches): ...

A little work is done in this process: starting others takes longer than a few MB of
text. Each worker has its own tokenizer, 100 to 150 MB; so that the whole step stays
under 512 MiB there are at most three, and more cores encode inside them.
"""

import contextlib
import json
import os
import selectors
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

from trainer.errors import RequestError, StepError
from trainer.tokens.documents import Part
from trainer.tokens.vocabulary import child_environment
from trainer.tokens.worker import Recipe

MOST_WORKERS = 3
_QUEUED = 2
"""Tasks a worker holds, so that it never waits for the next."""

Batch = list[tuple[Part, str]]
"""Parts to make pieces of, each with its source's stamp."""


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def num_workers(asked: int) -> int:
    """How many processes encode; `asked` 0: as many as cores and memory allow."""
    return asked or min(available_cores(), MOST_WORKERS)


class Crew:
    """Worker processes that make pieces with one recipe."""

    def __init__(self, workers: int) -> None:
        self._workers = [_start(max(1, available_cores() // workers)) for _ in range(workers)]

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *failure: object) -> None:
        for worker in self._workers:
            if failure[0]:
                worker.kill()
            if worker.stdin:
                # What a killed worker did not read any more is of no interest.
                with contextlib.suppress(BrokenPipeError):
                    worker.stdin.close()
            worker.wait()
            if worker.stdout:
                worker.stdout.close()

    def ask(self, task: dict[str, Any]) -> dict[str, Any]:
        """Have one worker do one task."""
        _send(self._workers[0], task)
        return _receive(self._workers[0])

    def make(self, recipe: Recipe, batches: Iterable[Batch]) -> Iterator[tuple[Batch, int]]:
        """Make all pieces; yields each batch when it is done, with its number of ids.

        Raises:
            RequestError: A file is not what it should be; the first to be found.
        """
        left = iter(batches)
        queues: dict[int, list[Batch]] = {index: [] for index in range(len(self._workers))}
        with selectors.DefaultSelector() as selector:
            for index, worker in enumerate(self._workers):
                assert worker.stdout
                selector.register(worker.stdout, selectors.EVENT_READ, index)
                for _ in range(_QUEUED):
                    self._queue(index, recipe, left, queues)
            while any(queues.values()):
                for key, _ in selector.select():
                    reply = _receive(self._workers[key.data])
                    done = queues[key.data].pop(0)
                    self._queue(key.data, recipe, left, queues)
                    yield done, reply["ids"]

    def _queue(
        self, index: int, recipe: Recipe, left: Iterator[Batch], queues: dict[int, list[Batch]]
    ) -> None:
        batch = next(left, None)
        if batch is not None:
            queues[index].append(batch)
            _send(self._workers[index], {"recipe": asdict(recipe), "make": batch})


def _start(threads: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "trainer.tokens.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**child_environment(), "RAYON_NUM_THREADS": str(threads)},
        encoding="utf-8",
    )


def _send(worker: subprocess.Popen[str], task: dict[str, Any]) -> None:
    assert worker.stdin
    try:
        worker.stdin.write(json.dumps(task) + "\n")
        worker.stdin.flush()
    except BrokenPipeError as error:
        raise StepError(_ended(worker)) from error


def _receive(worker: subprocess.Popen[str]) -> dict[str, Any]:
    assert worker.stdout
    line = worker.stdout.readline()
    if not line:
        raise StepError(_ended(worker))
    reply = json.loads(line)
    if "refused" in reply:
        raise RequestError(*reply["refused"])
    if "failed" in reply:
        raise StepError(reply["failed"])
    if "os_error" in reply:
        raise OSError(*reply["os_error"])
    return reply


def _ended(worker: subprocess.Popen[str]) -> str:
    code = worker.wait()
    killed = " It was killed, perhaps for lack of memory." if code == -9 else ""
    return f"A process that encodes ended with exit code {code}.{killed} Run it again to go on."
