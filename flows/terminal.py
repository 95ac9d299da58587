"""Show a run while it goes: live bars on a terminal, plain lines elsewhere.

Both write to standard error; standard output is for results, so that it can be piped.
"""

import sys
import time
from typing import Any, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
)
from rich.text import Text

from tasks.wording import describe_figures, describe_progress, format_seconds
from trainer.events import Event
from trainer.outcome import Outcome

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


class RichWatcher:
    """A live bar for the step under way, what the step says above it."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description:<9}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            _Figures(),
            console=self._console,
            transient=True,
        )
        self._bar: Any = None
        self._said = ""

    def started(self, step: str, where: str) -> None:
        self._progress.start()
        self._bar = self._progress.add_task(step, total=None, figures=where)

    def line(self, step: str, text: str) -> None:
        self._said = text
        self._progress.console.print(f"  {step} | {text}", style="dim", markup=False)

    def event(self, step: str, event: Event) -> None:
        if event.kind == "notice":
            message = event.fields.get("message", "")
            self._progress.console.print(f"  {step}: {message}", markup=False)
        if event.kind == "progress" and self._bar is not None:
            self._progress.update(
                self._bar,
                completed=event.fields.get("done", 0),
                total=event.fields.get("total"),
                figures=f"{event.fields.get('unit', '')}  {describe_figures(event.fields)}",
            )

    def ended(self, step: str, outcome: Outcome) -> None:
        if self._bar is not None:
            self._progress.remove_task(self._bar)
            self._bar = None
        mark = Text("✓ ", style="green") + Text(f"{step:<9} {how_it_ended(outcome, self._said)}")
        self._progress.console.print(mark)

    def close(self) -> None:
        self._progress.stop()


class _Figures(ProgressColumn):
    """Loss, speed and time left, as the step reports them."""

    def render(self, task: Task) -> Text:
        return Text(task.fields.get("figures", ""), style="cyan")


def watcher_for(out: TextIO) -> PlainWatcher | RichWatcher:
    """The watcher that suits `out`."""
    return RichWatcher() if out.isatty() else PlainWatcher(out)


def how_it_ended(outcome: Outcome, said: str) -> str:
    """A step's end in words; its message only where `said` was not that already."""
    state = "there already" if outcome.reused else f"done in {format_seconds(outcome.seconds)}"
    return f"{state}: {outcome.message}" if outcome.message not in ("", said) else state
