"""The one machine-readable line form that steps print between lines for people.

    ::finetune progress {"done": 12, "total": 400, "unit": "steps", ...}

A line is an event when it starts with `::finetune `, a kind and a JSON object
follow, and nothing else. Everything else is text. Kinds:

    progress   done, total (null: unknown), unit, label; optional per_second,
               remaining_seconds and figures to show beside the bar
    metric     one line of metrics.jsonl
    sample     one line of samples.jsonl: step, prompt, texts
    notice     message: one sentence worth showing to the user
    report     title, markdown: a page worth keeping beside the run
"""

import json
import sys
from dataclasses import dataclass, field
from typing import Any

from trainer.contract.json_text import parse_json

PREFIX = "::finetune "
KINDS = ("progress", "metric", "sample", "notice", "report")


@dataclass(frozen=True)
class Event:
    kind: str
    fields: dict[str, Any] = field(default_factory=dict)


def format_event(kind: str, fields: dict[str, Any]) -> str:
    """One line, without its newline, that `parse_event` reads back."""
    assert kind in KINDS, kind
    return f"{PREFIX}{kind} {json.dumps(fields, allow_nan=True)}"


def parse_event(line: str) -> Event | None:
    """The event in `line`, or None where the line is text."""
    if not line.startswith(PREFIX):
        return None
    kind, _, payload = line[len(PREFIX) :].partition(" ")
    if kind not in KINDS:
        return None
    try:
        fields = parse_json(payload)
    except ValueError:
        return None
    return Event(kind, fields) if isinstance(fields, dict) else None


def emit(kind: str, **fields: Any) -> None:
    """Print an event line on standard output at once."""
    # One write call: lines of several threads and processes must not interleave.
    sys.stdout.write(format_event(kind, fields) + "\n")
    sys.stdout.flush()


def progress(label: str, done: float, total: float | None, unit: str, **figures: Any) -> None:
    """Report how far a piece of work is. `figures` are shown beside the bar."""
    emit("progress", label=label, done=done, total=total, unit=unit, **figures)


def notice(message: str) -> None:
    """Say one sentence to the user who watches the run."""
    emit("notice", message=message)


def say(message: str) -> None:
    """Tell both who reads the log and who watches the run."""
    print(message, flush=True)
    notice(message)
