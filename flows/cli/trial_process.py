"""A trial of a sweep as a process of its own, which does not outlive the sweep.

A sweep that is killed can tell its trials nothing. Left alone, they would hold their
runs, and the sweep that is started again would be refused. The steps running continue
all the same, and are followed again.
"""

import os
import signal
import threading
import time

from infra.backend import Backend, BusyError
from trainer.contract.errors import EXIT_INTERRUPTED

END_SECONDS = 10.0  # for Prefect to be told; its server may have gone with the sweep
FREE_SECONDS = 2 * END_SECONDS


def end_with_sweep() -> None:
    """End this process, its step left alone, when the sweep's end of our stdin is closed."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(END_SECONDS)
        os._exit(EXIT_INTERRUPTED)

    threading.Thread(target=watch, name="end-with-sweep", daemon=True).start()


def wait_for_earlier(backend: Backend, pvc: str, run_name: str) -> None:
    """Let a trial of this name end that lost its sweep a moment ago."""
    deadline = time.monotonic() + FREE_SECONDS
    while time.monotonic() < deadline:
        try:
            with backend.claim(pvc, run_name):
                return
        except BusyError:
            time.sleep(0.1)
