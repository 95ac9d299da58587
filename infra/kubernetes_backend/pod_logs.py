"""A pod's lines, each once, through cut streams and restarted API servers.

Every line of a log has a time stamp of nanoseconds, and a log only grows at its end.
A stream that breaks is opened again from the last seconds that were read, which repeats
lines: exactly those that were counted in these seconds. So the memory needed does not
grow with the log.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from infra.kubernetes_backend.connection import READ_LOG, Connection
from infra.kubernetes_backend.contact import LOST, Object
from infra.kubernetes_backend.interruptible import Batch, Outlet
from infra.kubernetes_backend.refusals import RefusedError

SECOND = len("2026-11-22T09:28:43")
SECONDS_KEPT = 2  # stamps of stdout and stderr may be out of order by microseconds
LONGEST_LINE_BYTES = 1 << 20
PAUSE_SECONDS = 0.5
CONTEXT_LINES = 20  # of the past, for who adopts a Job that runs


@dataclass
class Position:
    """Up to where a log was handed over."""

    since: str | None = None  # where to begin, for who comes back
    begin: str = ""  # stamp of the first line handed over
    newest: str = ""
    counts: dict[str, int] = field(default_factory=dict)  # lines of the newest seconds
    context_lines: int | None = None  # how much of the past to begin with; None: all

    def query(self) -> tuple[str | None, int | None]:
        """From when (`sinceTime`) and how much (`tailLines`) to ask for."""
        if self.counts:
            # A stamp may fall back over the edge of a second; before `since` nothing was counted.
            zone = self.newest[SECOND:].lstrip(".0123456789")
            begin = min(min(self.counts), _second_before(max(self.counts)))
            return max(begin + zone, self.since or ""), None
        return self.since, self.context_lines

    @property
    def repeated(self) -> int:
        """How many lines a new stream repeats."""
        return sum(self.counts.values())

    def advance(self, stamp: str) -> None:
        """One more line was handed over."""
        self.begin = self.begin or stamp
        self.newest = max(self.newest, stamp)
        second = stamp[:SECOND]
        self.counts[second] = self.counts.get(second, 0) + 1
        while len(self.counts) > SECONDS_KEPT:
            del self.counts[min(self.counts)]


def _second_before(second: str) -> str:
    return (datetime.fromisoformat(second) - timedelta(seconds=1)).isoformat()


async def follow(
    connection: Connection, pod: Object, position: Position, outlet: Outlet, ended: asyncio.Event
) -> None:
    """Hand over the lines of a pod's container until it has ended and all are there.

    Args:
        ended: Set by who watches the pod, once its container has terminated.
    """
    name = pod["metadata"]["name"]
    try:
        await _follow(connection, pod, position, outlet, ended)
    except RefusedError as error:
        # Not worth a training: who may not read logs still learns how the Job ends.
        outlet.say(f"the log of pod {name} can't be read ({error})")


async def _follow(
    connection: Connection, pod: Object, position: Position, outlet: Outlet, ended: asyncio.Event
) -> None:
    while True:
        was_ended = ended.is_set()
        complete = await _read(connection, pod, position, outlet, follow=not was_ended)
        if complete and was_ended:
            return
        if not ended.is_set():
            # A stream also ends where a proxy or an API server restarts: look again.
            await _set_within(ended, PAUSE_SECONDS)
        elif not complete:
            await asyncio.sleep(PAUSE_SECONDS)


async def _set_within(event: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return


async def _read(
    connection: Connection, pod: Object, position: Position, outlet: Outlet, *, follow: bool
) -> bool:
    """Read one stream; whether it ended by itself, so that nothing more was there."""
    container = pod["spec"]["containers"][0]["name"]
    since, tail_lines = position.query()
    repeated = position.repeated
    try:
        async with connection.log(
            pod["metadata"]["name"], container, since=since, tail_lines=tail_lines, follow=follow
        ) as pieces:
            async for lines in _lines(pieces):
                repeated = await _hand_over(lines, repeated, position, outlet)
        return True
    except RefusedError as error:
        if error.unauthorized and READ_LOG in connection.allowed:
            return False  # an API server that has just started answers so for a second
        if error.code == 403:
            raise
        # 404: the pod is gone with its log. 400: its container has not started, or never will.
        # Without a reason it is what a proxy says while the API server is away.
        return error.code in (400, 404) and bool(error.reason)
    except LOST:
        return False


async def _hand_over(
    lines: Iterable[bytes], repeated: int, position: Position, outlet: Outlet
) -> int:
    """Pass on what is new among `lines`; return how many repeated ones are still to come."""
    stamps, texts = [], []
    for line in lines:
        stamp, _, text = line.partition(b" ")
        when = stamp.decode(errors="replace")
        if repeated and position.context_lines is not None and when < position.begin:
            continue  # of the past before the context
        if repeated and when <= position.newest:
            repeated -= 1
            continue
        stamps.append(when)
        texts.append(_shown(text))
    batch = Batch(texts)
    try:
        if texts:
            await outlet.put(batch)
    finally:
        # Also when interrupted: who waits again gets each line once.
        for when in stamps[: batch.taken]:
            position.advance(when)
    return repeated


async def _lines(pieces: AsyncIterator[bytes]) -> AsyncIterator[list[bytes]]:
    """Whole lines, as many at a time as have come; of a very long one the beginning alone."""
    rest, cut = b"", False
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        if cut and lines:
            del lines[0]
            cut = False
        if len(rest) > LONGEST_LINE_BYTES:
            if not cut:
                lines.append(rest[:LONGEST_LINE_BYTES])
            rest, cut = b"", True
        if lines:
            yield lines


def _shown(text: bytes) -> str:
    # A progress bar that draws over itself counts as what it shows last.
    return text.rstrip(b"\r").rpartition(b"\r")[2].decode("utf-8", errors="replace")
