import contextlib
import os
import signal
import sys
from collections.abc import Iterator

import pytest

from trainer.contract import warm

# The workers fill the cores: threads that wait for each other there make tiny models crawl. Read
# when torch is loaded, here and by every process that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ten seconds for each model that a test fetches: tests/exam has it on.
os.environ.setdefault("FINETUNE_EXAMS", "off")

_session = contextlib.ExitStack()


def pytest_sessionstart(session: pytest.Session) -> None:
    """Fork the steps of all workers from one warm parent; FINETUNE_WARM_PARENT=off starts each."""
    if not hasattr(session.config, "workerinput"):
        _session.enter_context(warm.warm_parents())
        warm.socket_of(sys.executable, "--load")


@pytest.fixture(autouse=True)
def own_environment() -> Iterator[None]:
    """What a command sets for its own process (its --home, its handlers) ends with its test."""
    before = dict(os.environ)
    # A step ignores SIGTERM once it ends. Left so, every later child of this worker would too.
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


def pytest_sessionfinish() -> None:
    _session.close()
