"""Time limits of what a server waits for, which come soon once it is told to stop."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

STOPPING_SECONDS = 5.0  # for what is still being received or read when the server is to stop


class Deadlines:
    """Limits that are running now. Belongs to one event loop."""

    def __init__(self) -> None:
        self._running: set[asyncio.Timeout] = set()
        self._stop_at: float | None = None

    @contextlib.asynccontextmanager
    async def within(self, seconds: float) -> AsyncIterator[None]:
        """Raise TimeoutError after `seconds`, or soon after `stop`."""
        at = asyncio.get_running_loop().time() + seconds
        async with asyncio.timeout_at(self._sooner(at)) as timeout:
            self._running.add(timeout)
            try:
                yield
            finally:
                self._running.discard(timeout)

    def stop(self) -> None:
        """Let nothing that is running now, or begins later, wait long."""
        self._stop_at = asyncio.get_running_loop().time() + STOPPING_SECONDS
        for timeout in self._running:
            at = timeout.when()
            if at is not None and not timeout.expired():
                timeout.reschedule(self._sooner(at))

    def _sooner(self, at: float) -> float:
        return at if self._stop_at is None else min(at, self._stop_at)
