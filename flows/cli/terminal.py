"""Show a run while it goes: live bars on a terminal, plain lines elsewhere.

Both write to standard error; standard output is for results, so that it can be piped.
"""

import sys
import time
from typing import Any, TextIO

from rich.console import Console
from rich.progress import Progress
from rich.text import Text

from flows.cli.progress_line import ProgressLine
from flows.cli.signals import uninterrupted
from trainer.contract.events import Event
from trainer.contract.outcome import Outcome
from trainer.contract.wording import describe_progress, figures_of, format_seconds

PLAIN_SECONDS = 5.0


class PlainWatcher:
    """One line a notice, one line every few seconds of progress."""

    def __init__(self, out: TextIO = sys.stderr) -> None:
        self._out = out
        self._next_progress = 0.0
        self._said = ""

    def started(self, step: str, where: str) -> None:
        self._next_progress = time.monotonic() + PLAIN_SECONDS
        self._print(f"{step}: {where}")

    def line(self, step: str, text: str) -> None:
        self._said = text
        self._print(f"{step} | {text}")

    def event(self, step: str, event: Event) -> None:
        if event.kind == "notice":
            self._print(f"{step}: {event.fields.get('message', '')}")
        if event.kind == "progress" and time.monotonic() >= self._next_progress:
            self._next_progress = time.monotonic() + PLAIN_SECONDS
            self._print(f"{step}: {describe_progress(event.fields)}")

    def ended(self, step: str, outcome: Outcome) -> None:
        self._print(f"{step}: {how_it_ended(outcome, self._said)}")

    def close(self) -> None:
        pass

    def _print(self, text: str) -> None:
        print(text, file=self._out, flush=True)


class NoticesAlone(PlainWatcher):
    """Notices of a step that is over before the run begins, such as that something takes long."""

    def started(self, step: str, where: str) -> None: ...

    def line(self, step: str, text: str) -> None: ...

    def event(self, step: str, event: Event) -> None:
        if event.kind == "notice":
            super().event(step, event)

    def ended(self, step: str, outcome: Outcome) -> None: ...


class RichWatcher:
    """A live bar for the step running, what the step says above it."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        line = ProgressLine(self._console)
        self._progress = Progress(line, console=self._console, transient=True)
        self._bar: Any = None
        self._said = ""

    def started(self, step: str, where: str) -> None:
        with uninterrupted():
            self._progress.start()
            self._bar = self._progress.add_task(step, total=None, figures=[where])

    def line(self, step: str, text: str) -> None:
        self._said = text
        with uninterrupted():
            self._progress.console.print(f"  {step} | {text}", style="dim", markup=False)

    def event(self, step: str, event: Event) -> None:
        with uninterrupted():
            if event.kind == "notice":
                message = event.fields.get("message", "")
                self._progress.console.print(f"  {step}: {message}", markup=False)
            if event.kind == "progress" and self._bar is not None:
                self._progress.update(
                    self._bar,
                    completed=event.fields.get("done", 0),
                    total=event.fields.get("total"),
                    figures=[event.fields.get("unit", ""), *figures_of(event.fields)],
                )

    def ended(self, step: str, outcome: Outcome) -> None:
        with uninterrupted():
            if self._bar is not None:
                self._progress.remove_task(self._bar)
                self._bar = None
            how = Text(f"{step:<9} {how_it_ended(outcome, self._said)}")
            self._progress.console.print(Text("✓ ", style="green") + how)

    def close(self) -> None:
        with uninterrupted():
            self._progress.stop()


def watcher_for(out: TextIO) -> PlainWatcher | RichWatcher:
    """The watcher that suits `out`."""
    return RichWatcher() if out.isatty() else PlainWatcher(out)


def how_it_ended(outcome: Outcome, said: str) -> str:
    """A step's end in words; its message only where `said` was not that already."""
    state = "cached" if outcome.reused else f"done in {format_seconds(outcome.seconds)}"
    return f"{state}: {outcome.message}" if outcome.message not in ("", said) else state
