"""Stop on SIGTERM or Ctrl-C when it is safe; on a second Ctrl-C at once."""

import os
import signal
import threading
from types import FrameType

from trainer.contract.errors import EXIT_TERMINATED, Signalled


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


def too_late(
    step_seconds: float, save_seconds: float, is_saving: bool, grace_seconds: float
) -> str:
    """What to say where a signal that came now would leave no time to save; '' where there is.

    Args:
        step_seconds: Of a step, which is done to its end.
        save_seconds: That the last checkpoint took; 0: there was none yet.
        is_saving: Whether one is running, which the next has to wait for.
        grace_seconds: From the signal until the run is killed.
    """
    needed = step_seconds + save_seconds * (2 if is_saving else 1)
    if not save_seconds or needed <= grace_seconds:
        return ""
    after = " after the one running" if is_saving else ""
    return (
        f"a step and a checkpoint{after} take {needed:.0f} s, but {grace_seconds:.0f} s after "
        "SIGTERM the run is killed (grace_seconds): steps since the last one would be done again"
    )
