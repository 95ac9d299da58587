"""How far reading and encoding are: MB and tokens per second, share done, time left."""

import time

from trainer.contract import events

_EVERY_SECONDS = 0.5


class Progress:
    """Reports a piece of work measured in bytes."""

    def __init__(self, label: str, total_bytes: int) -> None:
        self.label = label
        self.total = total_bytes
        self.done = self.made = self.tokens = 0
        self._started = self._told = time.monotonic()

    def skip(self, size: int) -> None:
        """Count bytes that need no work: they are cached."""
        self.done += size

    def add(self, size: int, tokens: int) -> None:
        """Count bytes that were worked on."""
        self.done += size
        self.made += size
        self.tokens += tokens
        if time.monotonic() - self._told >= _EVERY_SECONDS:
            self._tell()

    def reach(self, size: int) -> None:
        """Say that so many bytes are done, of work that makes no tokens."""
        self.add(size - self.done, 0)

    def end(self) -> None:
        """Say how it ended."""
        self.done = self.total
        self._tell()

    def _tell(self) -> None:
        self._told = time.monotonic()
        seconds = max(self._told - self._started, 1e-6)
        speed = self.made / seconds
        events.progress(
            self.label,
            done=round(self.done / 1e6, 3),
            total=round(self.total / 1e6, 3),
            unit="MB",
            per_second=round(speed / 1e6, 3),
            tokens_per_second=round(self.tokens / seconds) if self.tokens else None,
            remaining_seconds=round((self.total - self.done) / speed, 1) if speed else None,
        )
