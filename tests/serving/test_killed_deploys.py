"""A deploy that tries a server is killed with kill -9: one server is left, the recorded one."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.local import service as local_service
from infra.local import service_client
from trainer.contract.process_time import process_started

PATIENCE_SECONDS = 240.0
AT_ITS_START = "local_service.await_ready = lambda process, *_: stay(process.pid)"
AS_ITS_CHECK = "local_service.record = lambda volume, name, service, event: stay(service.pid)"
AFTER_ITS_RECORD = "local_service.tell = lambda pid, began: stay(pid)"
START = "local_service.start(volume, 'town', 'tales/final')"
ASK = "with local_service.serving_for_a_while(volume, 'tales/final'): pass"


@contextlib.contextmanager
def deploy(volume: Path, change: str, call: str = START) -> Iterator[int]:
    """A deploy that tries a server; the process id which that one tells when it has come to `stay`.

    Killed with kill -9 at the end of the block.
    """
    code = (
        "import sys, time; from pathlib import Path\n"
        "from infra.local import service as local_service\n"
        "def stay(pid): print(pid, flush=True); time.sleep(3600)\n"
        f"volume = Path(sys.argv[1]); {change}\n{call}"
    )
    command = [sys.executable, "-c", code, str(volume)]
    environment = {**os.environ, "TMPDIR": str(volume.parent)}  # where it leaves what it had
    deploying = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert deploying.stdout is not None
        yield int(deploying.stdout.readline())
    finally:
        deploying.send_signal(signal.SIGKILL)
        deploying.communicate()


def await_end(pid: int, began: str | None) -> None:
    assert began is not None
    deadline = time.monotonic() + PATIENCE_SECONDS
    while process_started(pid) == began:
        assert time.monotonic() < deadline, "the server is left running"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("change", "call"),
    [(AT_ITS_START, START), (AS_ITS_CHECK, START), (AT_ITS_START, ASK)],
    ids=["starting", "checked", "asked"],
)
def test_a_server_ends_with_who_tries_it(volume: Path, change: str, call: str) -> None:
    with deploy(volume, change, call) as candidate:
        began = process_started(candidate)
    await_end(candidate, began)


def test_the_server_before_ends_where_who_replaced_it_was_killed(volume: Path) -> None:
    before = local_service.start(volume, "town", "tales/final")
    try:
        with deploy(volume, AFTER_ITS_RECORD) as told:
            assert told == before.pid
        await_end(before.pid, before.process_started)
        now = local_service.running(volume, "town")
        assert now is not None and now.revision == before.revision + 1
        assert service_client.ask(now, "Dust", max_tokens=4)
    finally:
        assert local_service.stop(volume, "town")
