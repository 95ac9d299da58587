"""What a command of the user's asks a process of the trainer, and how that answers.

Such a process prints for people, and its result on a line of its own, for the command alone.
Exit codes: those of its work, 78 the request is wrong, 143 interrupted.
"""

import json
import signal
import sys
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

from trainer.contract.errors import Signalled, StepError

_RESULT = "::result "


def hand_over(body: Mapping[str, Any]) -> None:
    """Print the result."""
    print(_RESULT + json.dumps(body), flush=True)


def result_of(line: str) -> str | None:
    """The JSON of a result that the line is; None: it is for people."""
    return line.removeprefix(_RESULT) if line.startswith(_RESULT) else None


def exit_code_of(act: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Do what is asked: its exit code. Signals end it, and an error is one sentence."""
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, _stop)
    try:
        return act(arguments)
    except (StepError, Signalled) as error:
        print(error, file=sys.stderr)
        return error.exit_code


def _stop(signum: int, frame: FrameType | None) -> None:
    raise Signalled(f"stopped by {signal.Signals(signum).name}")
