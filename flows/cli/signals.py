"""What signals do to a command: SIGTERM ends it with a sentence, Ctrl-C tears no line apart."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from trainer.contract.errors import Interrupted, Signalled


@contextlib.contextmanager
def ending_on_sigterm(what_goes_on: Callable[[], str]) -> Iterator[None]:
    """End the block on SIGTERM; a second one ends the process at once.

    Prefect turns the signal into an exception of its own, reports it, and sends the signal again:
    without this, to Python's default handler, which ends the process without a word.

    Args:
        what_goes_on: The sentence for the user.
    Raises:
        Interrupted: With that sentence.
    """

    def stop(signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        raise Signalled("stopped by SIGTERM")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except Signalled:
        raise Interrupted(what_goes_on()) from None
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Have Ctrl-C wait until the block is done, as what is drawn halfway is never cleared."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[FrameType | None] = []
    before = signal.signal(signal.SIGINT, lambda signum, frame: came.append(frame))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came and callable(before):
            before(signal.SIGINT, came[0])
