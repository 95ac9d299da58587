"""What can end a step, and the exit code each cause has.

    StepError                      1    a bug, a lost machine, no memory: may be tried again
    ├── RequestError              78    the request is wrong (parameter, data, model): never retried
    ├── DamagedError               1    something on the volume is not what its manifest says
    ├── LostNodeError             75    another node of the group ended: starts again, uncounted
    └── Interrupted              143    stopped by a signal after saving: run it again to resume

    ImportError                   70    the image lacks a package: never retried
    Signalled (BaseException)    143    raised by signal handlers, becomes Interrupted

Raise ValueError for a bad argument inside the code; raise RequestError when the
user has to change something, in the form
`<what, as the user knows it> <is wrong> (got <value>). <limit>. <what to do>.`
"""

from collections.abc import Sequence

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_INTERRUPTED = 75  # of the command line, and of a node: run it again to resume (EX_TEMPFAIL)
EXIT_INCOMPLETE = 70  # of a step: its image lacks a package (EX_SOFTWARE); never retried
EXIT_REFUSED = 78  # EX_CONFIG of sysexits.h
EXIT_TERMINATED = 143  # of a step: 128 + SIGTERM, state saved


class StepError(Exception):
    """A step ended without its result."""

    exit_code = EXIT_FAILED


class RequestError(StepError):
    """The request is wrong; `problems` holds one sentence for each thing to mend.

    Args:
        found: Lines that say where it was found, for who reads the error.
    """

    exit_code = EXIT_REFUSED

    def __init__(self, *problems: str, found: Sequence[str] = ()) -> None:
        super().__init__("\n".join([*problems, *found]))
        self.problems = problems


class DamagedError(StepError):
    """A file on the volume is missing, cut short or altered."""


class DoesNotFitError(StepError):
    """A training step needs more memory than the GPU has."""


class LostNodeError(StepError):
    """This node is well, but another one that it trains with has ended."""

    exit_code = EXIT_INTERRUPTED


class Interrupted(StepError):  # noqa: N818 - no error: it did what it was told
    """SIGTERM or SIGINT arrived, and what there was to save is saved."""

    exit_code = EXIT_TERMINATED


class Signalled(BaseException):
    """A signal arrived, wherever the process is: no library's `except Exception` may keep it."""

    exit_code = EXIT_TERMINATED
