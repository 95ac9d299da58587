"""An event loop in a thread of its own, so that signals interrupt who waits, not the loop.

Python runs signal handlers in the main thread. An exception raised there (Ctrl-C, a
worker's termination) inside an event loop's callback would be logged and forgotten.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, TypeVar

from infra.backend import Line, Notice

T = TypeVar("T")


@dataclass
class Batch:
    """Lines on their way to the main thread; `taken` of them have arrived."""

    lines: list[str]
    taken: int = 0


class Outlet:
    """Where the event loop puts lines; one batch at a time for each task that puts."""

    def __init__(self) -> None:
        self._inbox: SimpleQueue[tuple[Batch, asyncio.Future[None] | None] | None] = SimpleQueue()

    async def put(self, batch: Batch) -> None:
        """Return when the main thread has taken every line: nothing piles up."""
        loop = asyncio.get_running_loop()
        taken: asyncio.Future[None] = loop.create_future()
        self._inbox.put((batch, taken))
        await taken

    def say(self, line: str) -> None:
        """Put one line of our own without waiting; for what is rare."""
        self._inbox.put((Batch([line if isinstance(line, Notice) else Notice(line)]), None))

    def close(self) -> None:
        self._inbox.put(None)

    def drain(self, on_line: Line) -> None:
        """Hand the lines over, in the calling thread, until the outlet is closed."""
        while (item := self._inbox.get()) is not None:
            batch, taken = item
            for line in batch.lines:
                on_line(line)
                batch.taken += 1
            if taken is not None:
                taken.get_loop().call_soon_threadsafe(_settle, taken)


def _settle(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def run(work: Callable[[Outlet], Coroutine[Any, Any, T]], on_line: Line) -> T:
    """Run `work` beside the calling thread, which hands its lines to `on_line` meanwhile.

    What interrupts the calling thread cancels the work, and is raised when that has ended.
    """
    outlet = Outlet()
    running: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[T]]] = []
    results: list[T] = []
    failures: list[BaseException] = []

    async def main() -> T:
        task = asyncio.ensure_future(work(outlet))
        running.append((asyncio.get_running_loop(), task))
        started.set()
        return await task

    def beside() -> None:
        try:
            results.append(asyncio.run(main()))
        # Whatever ended the work is raised again in the thread that asked for it.
        except BaseException as error:  # noqa: BLE001
            failures.append(error)
        finally:
            started.set()
            outlet.close()

    started = threading.Event()
    thread = threading.Thread(target=beside, name="kubernetes", daemon=True)
    thread.start()
    try:
        outlet.drain(on_line)
    except BaseException:  # Ctrl-C and SIGTERM come here: the work ends before they continue
        started.wait()
        for loop, task in running:
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(task.cancel)
        thread.join()
        raise
    thread.join()
    if failures:
        raise failures[0]
    return results[0]
