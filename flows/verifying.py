"""`finetune verify RUN --resume`: have a process train again and compare, and show how it goes."""

import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from flows.overview import known_run
from flows.terminal import PlainWatcher, RichWatcher, watcher_for
from trainer.errors import EXIT_FAILED, EXIT_TERMINATED, Interrupted
from trainer.events import parse_event

STEP = "verify"


def verify_resume(home: Path, pvc: str, run_name: str) -> int:
    """Show what the process says; its exit code.

    Raises:
        Interrupted: It was stopped.
        RequestError: There is no such run.
    """
    known_run(home, pvc, run_name)
    command = [sys.executable, "-m", "trainer.training.rehearsal", str(home / pvc), run_name]
    # In a session of its own Ctrl-C reaches it once, through us: then it cleans up and ends.
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        before = _pass_on_to(process)
        watcher = watcher_for(sys.stderr)
        try:
            code = _show(process, watcher)
        finally:
            watcher.close()
            for signum, handler in before.items():
                signal.signal(signum, handler)
    if code in (EXIT_TERMINATED, -signal.SIGTERM, -signal.SIGINT):
        raise Interrupted("interrupted; the run was not touched")
    return code if code >= 0 else EXIT_FAILED


def _pass_on_to(process: subprocess.Popen[str]) -> dict[int, Any]:
    """Pass signals on; the handlers there were."""

    def pass_on(signum: int, frame: FrameType | None) -> None:
        process.send_signal(signum)

    return {s: signal.signal(s, pass_on) for s in (signal.SIGTERM, signal.SIGINT)}


def _show(process: subprocess.Popen[str], watcher: PlainWatcher | RichWatcher) -> int:
    assert process.stdout is not None
    watcher.started(STEP, f"process {process.pid}")
    for line in process.stdout:
        event = parse_event(line.rstrip("\n"))
        if event is None:
            print(line, end="", flush=True)
        else:
            watcher.event(STEP, event)
    return process.wait()
