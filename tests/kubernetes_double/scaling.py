"""Scaling to zero and back, as Knative's autoscaler and activator do it.

A revision that nobody asks for as long as its annotation says gets no server; the next
request starts one, and is held until that is ready. A connection counts as a request.
Source: https://knative.dev/docs/serving/autoscaling/scale-to-zero/
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tests.kubernetes_double.store import Object

RETENTION = "autoscaling.knative.dev/scale-to-zero-pod-retention-period"
LOOK_SECONDS = 0.02


class Activity:
    """Which revisions are asked, and which have been put to sleep."""

    def __init__(self, minute_seconds: Callable[[], float]) -> None:
        self._minute_seconds = minute_seconds
        self._asked: Counter[str] = Counter()  # connections that are open
        self._last: dict[str, float] = {}
        self._asleep: set[str] = set()

    def is_asleep(self, revision: str) -> bool:
        """Whether it has no server, and needs none to be ready."""
        return revision in self._asleep

    def is_asked(self, revision: str) -> bool:
        """Whether a client is connected, to whose request its server may not have come yet."""
        return self._asked[revision] > 0

    def note(self, answering: set[str], ended: set[str]) -> None:
        """Whose servers are ready, and whose failed: nobody waits for those any longer."""
        self._asleep -= answering | ended
        for revision in answering:
            self._last.setdefault(revision, time.monotonic())

    def wants_server(self, revision: str, predictor: Object, annotations: Object) -> bool:
        """Whether it is to have a server now; one that is to have none falls asleep."""
        last = self._last.get(revision)
        if predictor["minReplicas"] > 0 or last is None or self.is_asked(revision):
            return True
        minutes = float(annotations[RETENTION].removesuffix("m"))
        if time.monotonic() - last > minutes * self._minute_seconds():
            self._asleep.add(revision)
        return revision not in self._asleep

    @contextmanager
    def asked(self, revision: str) -> Iterator[None]:
        """While a client is connected."""
        self._asked[revision] += 1
        try:
            yield
        finally:
            self._asked[revision] -= 1
            self._last[revision] = time.monotonic()

    async def awake(self, revision: str) -> None:
        """Hold a request until the revision has a server."""
        while revision in self._asleep:
            await asyncio.sleep(LOOK_SECONDS)
