"""The live bar as one line that fits the terminal: `finetune ━━━━━━━━ 81/159 steps  loss 1.143`.

Rich's own columns wrap where they do not fit, and a bar of two lines leaves a copy of itself
behind. Some columns stay free: there a terminal writes `^C`, and the line is drawn anew.
"""

from collections.abc import Sequence

from rich.console import Console
from rich.progress import ProgressColumn, Task
from rich.text import Text

SPARE_COLUMNS = 5
BARS = (24, 12, 0)  # widths of the bar, the widest one that leaves room for all figures


class ProgressLine(ProgressColumn):
    """The whole line of one step; `figures` of the task are phrases, the first is the unit."""

    max_refresh = 0.1

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def render(self, task: Task) -> Text:
        total = None if task.total is None else int(task.total)
        return progress_line(
            task.description,
            int(task.completed),
            total,
            task.fields.get("figures", ()),
            self._console.width - SPARE_COLUMNS,
        )


def progress_line(
    step: str, done: int, total: int | None, figures: Sequence[str], columns: int
) -> Text:
    """The line, of at most so many columns.

    Args:
        figures: The unit, then phrases such as `loss 1.143`. Speeds go first where room is short.
    """
    count = f"{done}/{'?' if total is None else total}"
    unit, phrases = (figures[0] if figures else "", list(figures[1:]))
    while True:
        for width in BARS:
            bar = _bar(done, total, width)
            about = "  ".join(part for part in (unit, ", ".join(phrases)) if part)
            line = Text(f"{step:<9} ") + bar + Text(f"{count} ", style="green")
            line += Text(about, style="cyan")
            if len(line) <= columns:
                return line
        if not phrases:
            line.truncate(columns, overflow="ellipsis")
            return line
        speeds = [phrase for phrase in phrases if "/s" in phrase]
        phrases.remove(speeds[-1] if speeds else phrases[0])


def _bar(done: int, total: int | None, width: int) -> Text:
    if not width:
        return Text("")
    full = min(width, width * done // total) if total else 0
    return Text("━" * full, style="magenta") + Text("━" * (width - full), style="dim") + Text(" ")
