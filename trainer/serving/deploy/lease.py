"""End a server that nobody would end: who tried it is gone, or another one took its place.

    until it takes over   it lives as long as who tries it, who holds the other end of its stdin
    from then on          as long as `service.json` names no other process

What kills its orchestrator, even kill -9, closes that pipe. The record is replaced by one
rename, so there is no moment at which both servers stay, or neither.
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path

from trainer.contract.json_text import parse_json

LOOK_SECONDS = 2.0


def hold(record_file: Path) -> None:
    """Send this process SIGTERM once nobody wants it any more."""
    threading.Thread(target=_hold, args=[record_file], name="lease", daemon=True).start()


def _hold(record_file: Path) -> None:
    _await_end_of(sys.stdin.fileno())
    if _recorded_process(record_file) == os.getpid():
        # One that is stopped is told so, and its record goes after that.
        while _recorded_process(record_file) in (os.getpid(), None):
            time.sleep(LOOK_SECONDS)
        print("another server has taken over", flush=True)
        time.sleep(LOOK_SECONDS)  # for who has just read this one's address to have asked here
    else:
        print("who tried this server is gone", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)


def _await_end_of(descriptor: int) -> None:
    while os.read(descriptor, 4096):
        pass


def _recorded_process(record_file: Path) -> int | None:
    """The id of the process that serves the run; None where that can't be known now."""
    try:
        return parse_json(record_file.read_text(encoding="utf-8"))["pid"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
