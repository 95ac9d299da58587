"""Send the lines of metrics.jsonl to a tracker from a thread of its own, each line once.

The number of a line in metrics.jsonl is its place at the tracker, so when a run is resumed the
tracker is asked how many lines it has: those are left alone, and what is missing is sent.
Training waits for no tracker. What goes wrong with one is said, and never ends the training.
"""

import queue
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from trainer.contract.events import say

BATCH_LINES = 20
SEND_SECONDS = 60.0  # at the end of a step that may be about to be killed
Line = Mapping[str, Any]
Numbered = tuple[int, Line]


class Connection(Protocol):
    """One run at a tracker."""

    there: int
    """How many lines it has."""

    def send(self, lines: list[Numbered]) -> None: ...

    def close(self) -> None: ...


class Background:
    """Takes lines at once, and sends them in their order."""

    def __init__(
        self, name: str, connect: Callable[[], Connection], earlier: Iterable[Line]
    ) -> None:
        """Begin to send.

        Args:
            name: Of the tracker, for what is said.
            connect: Finds the run there, or makes it; called in the thread.
            earlier: The lines that metrics.jsonl has, from the first on.
        """
        self._name, self._connect = name, connect
        self._lines: queue.SimpleQueue[Numbered | None] = queue.SimpleQueue()
        self._next = self._sent = 0
        self._ended = False
        for line in earlier:
            self.add(line)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def add(self, line: Line) -> None:
        """Take in the next line of metrics.jsonl."""
        if not self._ended:
            self._lines.put((self._next, dict(line)))
        self._next += 1

    def close(self) -> None:
        """Send what is left, for as long as a step that ends has time."""
        self._lines.put(None)
        self._thread.join(SEND_SECONDS)
        if self._thread.is_alive():
            say(
                f"{self._name} took {self._sent:,} of {self._next:,} lines in time. "
                "metrics.jsonl has them all; the run sends the others when it is resumed."
            )

    def _work(self) -> None:
        try:
            connection = self._connect()
            self._sent = connection.there
            while batch := self._batch():
                lines = [one for one in batch if one is not None]
                if fresh := [one for one in lines if one[0] >= connection.there]:
                    connection.send(fresh)
                    self._sent = fresh[-1][0] + 1
                if batch[-1] is None:
                    return connection.close()
        except Exception as error:  # noqa: BLE001  a library's, of any kind: training continues
            self._ended = True
            say(f"{self._name} takes no more metrics ({error}). metrics.jsonl has them all.")

    def _batch(self) -> list[Numbered | None]:
        """The next lines, at least one; None is the end."""
        batch = [self._lines.get()]
        while batch[-1] is not None and len(batch) < BATCH_LINES and not self._lines.empty():
            batch.append(self._lines.get())
        return batch
