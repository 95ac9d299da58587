"""Stop on SIGTERM or Ctrl-C when it is safe; on a second Ctrl-C at once."""

import os
import signal
import threading
from types import FrameType

from trainer.errors import EXIT_TERMINATED, Signalled


class StopRequest:
    """Remembers that a signal asked the process to stop, from the moment it is made."""

    def __init__(self) -> None:
        self.reason = ""
        self._interrupts = 0
        self._safe = False
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._remember)
            signal.signal(signal.SIGINT, self._remember)

    def __bool__(self) -> bool:
        return bool(self.reason)

    def at_once(self) -> None:
        """From now on there is nothing to save first: raise Signalled as signals come."""
        self._safe = True
        if self.reason:
            raise Signalled(f"stopped by {self.reason}")

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT:
            self._interrupts += 1
        if self._interrupts > 1:
            os._exit(EXIT_TERMINATED)
        self.reason = self.reason or signal.Signals(signum).name
        if self._safe:
            self.at_once()
