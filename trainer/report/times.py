"""Where a run's time went, over all its attempts: a ledger that adds up to the whole.

Every moment from the first orchestrator's start to the last step's end counts once: as
what the step running was doing, else as waiting for its image, else for a machine, else
as orchestration, else as stopped. Training that no checkpoint kept counts as lost work.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from trainer.contract import run_files
from trainer.contract.json_files import readable_object
from trainer.contract.run_folder import RunFolder

QUEUE, IMAGE, LOST = "queue", "image", "lost work"
ORCHESTRATION, STOPPED = "orchestration", "stopped"
ORDER = [
    *(ORCHESTRATION, QUEUE, IMAGE, "fetch", "tokenize", "load", "compute", "data wait"),
    *("checkpoint stall", "evaluation", "final model", LOST, "deploy", STOPPED),
]
# Steps that leave an outcome but no journal: the run had no folder yet, or it is no process.
BY_OUTCOME = ("fetch", "tokenize", "deploy")


@dataclass(frozen=True)
class Span:
    """A time in Unix seconds, and what it was spent on; the parts add up to it."""

    began: float
    ended: float
    parts: Mapping[str, float]


def ledger(run: RunFolder) -> dict[str, float]:
    """Seconds by part, in the order of a run; empty for a run that left no times."""
    paths = sorted(run.times.glob("*.json"))
    records = [found for path in paths if (found := readable_object(path, run_files.Times))]
    records.sort(key=lambda record: record["began"])
    flows = [Span(r["flow_began"], r["seen"], {}) for r in records if r["flow_began"]]
    flows += [Span(r["began"], r["seen"], {}) for r in records if r["step"] == "flow"]
    steps = [r for r in records if r["step"] != "flow"]
    waits = [(r["asked"], r.get("placed") or r["began"], r["began"]) for r in steps if r["asked"]]
    images = [Span(placed, began, {}) for _, placed, began in waits]
    queues = [Span(asked, placed, {}) for asked, placed, _ in waits]
    spans = [Span(r["began"], r["seen"], p) for r, p in zip(steps, kept(steps), strict=True)]
    spans += _by_outcome(run, spans)
    return add_up(spans, {IMAGE: images, QUEUE: queues, ORCHESTRATION: flows})


def kept(steps: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """The parts of each attempt, with what a later one had to do again as lost work."""
    found = []
    for number, record in enumerate(steps):
        later = [r["from_step"] for r in steps[number + 1 :] if r["from_step"] is not None]
        found.append(_parts(record, min(later, default=None)))
    return found


def _parts(record: Mapping[str, Any], went_on_from: int | None) -> dict[str, float]:
    parts = dict(record["parts"])
    if went_on_from is None or record["from_step"] is None or record["status"] == "done":
        return parts
    saves = [save for save in record["saves"] if save["step"] <= went_on_from]
    if saves:
        at_save = dict(saves[-1]["parts"])
        if record["status"] == "interrupted" and saves[-1] is record["saves"][-1]:
            return parts  # it saved before it ended
        return {**at_save, LOST: sum(parts.values()) - sum(at_save.values())}
    load = parts.pop("load", 0.0)
    return {"load": load, LOST: sum(parts.values())}


def _by_outcome(run: RunFolder, known: Sequence[Span]) -> list[Span]:
    found = []
    for step in BY_OUTCOME:
        outcome = run.outcome(step)
        if outcome is None or not outcome.started:
            continue
        try:
            began = datetime.fromisoformat(outcome.started).timestamp()
        except ValueError:
            continue
        ended = began + outcome.seconds
        if not any(span.began < ended and began < span.ended for span in known):
            found.append(Span(began, ended, {step: outcome.seconds}))
    return found


def add_up(steps: Sequence[Span], others: Mapping[str, Sequence[Span]]) -> dict[str, float]:
    """Seconds by part; where spans overlap, a step goes first, then `others` as they come.

    Args:
        steps: With the parts of each.
        others: By the part that they are.
    """
    everything = [*steps, *itertools.chain(*others.values())]
    if not everything:
        return {}
    total: dict[str, float] = {}
    taken: list[tuple[float, float]] = []

    def take(span: Span, parts: Mapping[str, float]) -> None:
        free = _free(span, taken)
        whole = sum(parts.values())
        for name, seconds in parts.items():
            total[name] = total.get(name, 0.0) + (free * seconds / whole if whole else 0.0)
        taken.append((span.began, span.ended))

    for span in sorted(steps, key=lambda span: span.began):
        take(span, span.parts)
    for name, spans in others.items():
        for span in spans:
            take(span, {name: 1.0})
    first, last = min(s.began for s in everything), max(s.ended for s in everything)
    take(Span(first, last, {}), {STOPPED: 1.0})
    return {name: total[name] for name in sorted(total, key=_place) if total[name] > 0}


def _place(part: str) -> int:
    """A part's place in the order; one that another version wrote comes last."""
    return ORDER.index(part) if part in ORDER else len(ORDER)


def _free(span: Span, taken: Sequence[tuple[float, float]]) -> float:
    """Seconds of the span that nothing has taken yet."""
    free, at = 0.0, span.began
    for began, ended in sorted(taken):
        if began > at:
            free += max(0.0, min(began, span.ended) - at)
        at = max(at, ended)
    return free + max(0.0, span.ended - at)
