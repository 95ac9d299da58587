"""Whether the server can answer now: shown by an answer, not by a flag.

A probe is a request of one token that goes the way of every request: through a reader, then the
engine. Health is answered within a second, so where a probe waits behind other requests, the work
that gets done meanwhile is the proof.
"""

import asyncio
import json
import time
from typing import Any

from trainer.contract.errors import StepError
from trainer.serving.api.bodies import ApiError
from trainer.serving.readers import ReaderError
from trainer.serving.service import Service

FRESH_SECONDS = 5.0  # that an answer proves that there will be another
ANSWER_SECONDS = 0.7  # that a probe is waited for
STALLED_SECONDS = 30.0  # without any work done, while a probe waits


class Health:
    """The state of one service. Used from one event loop."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._probe: asyncio.Task[bool] | None = None
        self._answered_at = float("-inf")
        self._progress: Any = None
        self._progress_at = self._looked_at = self._idle_at = time.monotonic()

    @property
    def is_live(self) -> bool:
        """Whether the server works, or could: one that hangs is to be started again."""
        self._look()
        engine = self._service.engine
        if not engine.alive or self._service.readers.failure:
            return False
        longest = engine.limits.request_seconds + STALLED_SECONDS
        return time.monotonic() - max(self._progress_at, self._idle_at) < longest

    async def is_ready(self) -> bool:
        """Whether a request that comes now would be answered."""
        if not self.is_live:
            return False
        if self._answers():
            return True
        probe = self._probe = self._probe or asyncio.create_task(self._ask())
        await asyncio.wait({probe}, timeout=ANSWER_SECONDS)
        if probe.done():
            self._probe = None
            if not probe.result():
                return False
        self._look()
        return self._answers() or time.monotonic() - self._progress_at < STALLED_SECONDS

    async def first_answer(self) -> None:
        """Wait for the first answer; a server without one is of no use.

        Raises:
            StepError: There is none.
        """
        if not await self._ask() or not self._answers():
            raise StepError("the model did not answer a first request. The lines above say why.")

    def _answers(self) -> bool:
        return time.monotonic() - self._answered_at < FRESH_SECONDS

    def _look(self) -> None:
        """Note whether work was done since the last look."""
        engine, now = self._service.engine, time.monotonic()
        counts = (engine.num_answered, engine.num_passes, self._service.readers.num_read)
        # After a long time without a look nothing is known of the work meanwhile.
        if counts != self._progress or now - self._looked_at > STALLED_SECONDS:
            self._progress, self._progress_at = counts, now
        if engine.waiting + engine.under_way == 0:
            self._idle_at = now
        self._looked_at = now

    async def _ask(self) -> bool:
        """Ask for a token; False where the server can't answer, apart from being busy."""
        body = {"model": self._service.name, "prompt": [0], "max_tokens": 1, "temperature": 0}
        try:
            asked = await self._service.readers.read("completions", json.dumps(body).encode(), {})
            (answer,) = await self._service.answers(asked.requests)
        except (ApiError, ReaderError) as error:
            if isinstance(error, ApiError) and error.status in (429, 503):
                return True
            print(f"a probe of readiness failed: {error}", flush=True)
            return False
        if answer.ids:
            self._answered_at = time.monotonic()
        return bool(answer.ids)
