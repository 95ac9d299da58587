"""Commands that train or compute again in a process of the trainer, and show how it goes."""

import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from flows.cli.runs.overview import known_run
from flows.cli.terminal import PlainWatcher, RichWatcher, watcher_for
from trainer.contract.asked_process import result_of
from trainer.contract.errors import EXIT_FAILED, EXIT_TERMINATED, Interrupted
from trainer.contract.events import parse_event

STEP = "verify"


def verify_resume(home: Path, pvc: str, run_name: str) -> int:
    """Show what the process says; its exit code.

    Raises:
        Interrupted: It was stopped.
        RequestError: There is no such run.
    """
    known_run(home, pvc, run_name)
    return in_process(["trainer.training.verify_resume", str(home / pvc), run_name])[0]


def verify_certificate(home: Path, pvc: str, run_name: str, *, from_start: bool) -> int:
    """As `verify_resume`, of what `finetune forget` certified."""
    known_run(home, pvc, run_name)
    more = ["--from-start"] if from_start else []
    return in_process(["trainer.forgetting", "check", str(home / pvc), run_name, *more])[0]


def in_process(words: list[str], step: str = STEP) -> tuple[int, str]:
    """Run a module of the trainer in a process with torch, and show what it says.

    Args:
        words: The module and its arguments.
        step: What its lines and bars are called.
    Returns:
        The exit code, and the result that the process handed over, as JSON.
    Raises:
        Interrupted: It was stopped.
    """
    command = [sys.executable, "-P", "-m", *words]
    # In a session of its own Ctrl-C reaches it once, through us: then it cleans up and ends.
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        before = _pass_on_to(process)
        watcher = watcher_for(sys.stderr)
        try:
            code, result = _show(process, watcher, step)
        finally:
            watcher.close()
            for signum, handler in before.items():
                signal.signal(signum, handler)
    if code in (EXIT_TERMINATED, -signal.SIGTERM, -signal.SIGINT):
        raise Interrupted("interrupted; the run was not touched")
    return (code if code >= 0 else EXIT_FAILED), result


def _pass_on_to(process: subprocess.Popen[str]) -> dict[int, Any]:
    """Pass signals on; the handlers there were."""

    def pass_on(signum: int, frame: FrameType | None) -> None:
        process.send_signal(signum)

    return {s: signal.signal(s, pass_on) for s in (signal.SIGTERM, signal.SIGINT)}


def _show(
    process: subprocess.Popen[str], watcher: PlainWatcher | RichWatcher, step: str
) -> tuple[int, str]:
    assert process.stdout is not None
    watcher.started(step, f"process {process.pid}")
    result = ""
    for line in process.stdout:
        event = parse_event(line.rstrip("\n"))
        if (handed_over := result_of(line)) is not None:
            result = handed_over
        elif event is None:
            print(line, end="", flush=True)
        else:
            watcher.event(step, event)
    return process.wait(), result
