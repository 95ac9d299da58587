"""End with an exit code of its own where this environment lacks a package. Loads only the stdlib.

Such an environment is the same at each try, so Kubernetes is told not to try again.
"""

import os
import sys
from types import TracebackType

from trainer.contract.errors import EXIT_INCOMPLETE
from trainer.contract.outcome import Outcome, write_termination_message


def message_of(error: ImportError) -> str:
    """What to do about a package, or its metadata, that is missing."""
    what = f"{type(error).__name__}: {error}"
    return f"the step needs a package that its image or environment lacks ({what}). Build it again."


def end_at_import_failure() -> None:
    """Have an ImportError that nothing catches end this process with its own exit code."""
    sys.excepthook = _end


def _end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.__excepthook__(kind, error, trace)
    if isinstance(error, ImportError):
        step = sys.argv[1] if len(sys.argv) > 1 else ""
        message = message_of(error)
        print(message, file=sys.stderr, flush=True)
        write_termination_message(Outcome(step=step, status="failed", message=message))
        os._exit(EXIT_INCOMPLETE)  # a hook cannot choose the exit code otherwise
