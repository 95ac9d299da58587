"""How many lines of a step reach Prefect's log: what its database can take for weeks.

Every line is in the step's own log. The server keeps the first ones, and then a share that
a month of training does not drown it with.
"""

import time
from collections.abc import Callable

BURST_LINES = 1000.0
LINES_PER_MINUTE = 20.0


class LineRate:
    """A bucket of lines that may pass, which fills up again slowly.

    Args:
        clock: Seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lines, self._filled = BURST_LINES, clock()
        self._left_out = 0

    def passes(self) -> bool:
        """Whether one more line may pass; one that may not is counted."""
        now = self._clock()
        self._lines += (now - self._filled) * LINES_PER_MINUTE / 60
        self._lines, self._filled = min(self._lines, BURST_LINES), now
        if self._lines < 1:
            self._left_out += 1
            return False
        self._lines -= 1
        return True

    def left_out(self) -> str:
        """What to say of the lines left out since it was asked last; empty where there are none."""
        count, self._left_out = self._left_out, 0
        return f"({count:,} lines left out; the step's own log has them)" if count else ""
