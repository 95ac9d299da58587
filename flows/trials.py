"""The trials of a sweep: which there are, how many continue, pictures of them. Plain data alone."""

import html
import itertools
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge
from pydantic import BaseModel, ConfigDict, Discriminator, Tag, model_validator

from trainer.contract.errors import StepError


class Range(BaseModel):
    """Numbers between two, drawn evenly, or evenly in their logarithm.

    Between two integers, those that lie there: 1 to 8, and not 1.0 to 8.0.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    min: int | float
    """Smallest number."""
    max: int | float
    """Largest number."""
    log: bool = False
    """Whether they are drawn evenly in their logarithm."""
    steps: Annotated[int, Ge(2)] = 3
    """Points in a grid."""

    @model_validator(mode="after")
    def _in_order(self) -> "Range":
        if not self.min < self.max or (self.log and self.min <= 0):
            above = ", or not above 0 as log needs it" if self.log else ""
            raise ValueError(f"min is not below max{above} (got {self.min} to {self.max}).")
        return self

    def at(self, share: float) -> float:
        """The number at this share of the way, 0 to 1, rounded to what tells them apart."""
        if isinstance(self.min, int) and isinstance(self.max, int):
            return round(self._at(share))
        return float(f"{self._at(share):.6g}")

    def _at(self, share: float) -> float:
        if self.log:
            return math.exp(math.log(self.min) * (1 - share) + math.log(self.max) * share)
        return self.min * (1 - share) + self.max * share

    def grid(self) -> list[float]:
        """Its points, each once."""
        points = [self.at(step / (self.steps - 1)) for step in range(self.steps)]
        return list(dict.fromkeys(points))


Values = Annotated[
    # Told apart beforehand, so that what is wrong is said of the one that was meant.
    Annotated[list[Any], Tag("list")] | Annotated[Range, Tag("range")],
    Discriminator(lambda given: "list" if isinstance(given, list) else "range"),
]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One set of values, and the loss of its last run."""

    number: int
    values: Mapping[str, Any]
    epochs: int = 0
    run: str = ""
    loss: float | None = None


def make_trials(
    over: Mapping[str, Values], method: Literal["grid", "random"], count: int, seed: int
) -> list[Trial]:
    """All points of the grid, or `count` that are drawn; the same for the same seed.

    A point that is drawn again makes no other trial.
    """
    if method == "grid":
        lists = [v.grid() if isinstance(v, Range) else v for v in over.values()]
        points = [dict(zip(over, point, strict=True)) for point in itertools.product(*lists)]
    else:
        draw = random.Random(seed)
        points = [
            {
                name: v.at(draw.random()) if isinstance(v, Range) else draw.choice(v)
                for name, v in over.items()
            }
            for _ in range(count)
        ]
        points = [point for at, point in enumerate(points) if point not in points[:at]]
    return [Trial(number=number, values=values) for number, values in enumerate(points, 1)]


def rungs(epochs: int, eta: int) -> list[int]:
    """Epochs of each round of successive halving, the last one whole; `eta` 1: one round.

    Source: Jamieson and Talwalkar, "Non-stochastic best arm identification and
    hyperparameter optimization", 2016: each round keeps one in `eta`, and trains it so
    many times as long.
    """
    found = [epochs]
    while eta > 1 and found[0] // eta >= 1:
        found.insert(0, found[0] // eta)
    return found


def going_on(trials: Sequence[Trial], eta: int) -> list[Trial]:
    """The best of a round, one in `eta` and at least one; those without a loss are out."""
    measured = [trial for trial in trials if trial.loss is not None]
    best = sorted(measured, key=lambda trial: (trial.loss, trial.number))
    return best[: max(1, math.ceil(len(trials) / eta))]


def check_losses(trials: Sequence[Trial]) -> None:
    """Raise StepError where no trial of a round came to a loss."""
    if all(trial.loss is None for trial in trials):
        runs = ", ".join(trial.run for trial in trials)
        raise StepError(
            f"the sweep has no trial with a loss (got {len(trials)} that failed: {runs}). "
            "What each of them said stands above. Start the sweep again when that is mended."
        )


# --- what is shown ----------------------------------------------------------------------


def table(trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """One row a trial, the furthest and best first."""
    rank = sorted(
        trials, key=lambda t: (-t.epochs, t.loss if t.loss is not None else math.inf, t.number)
    )
    return [
        {"trial": t.number, **t.values, "epochs": t.epochs, "loss": t.loss, "run": t.run}
        for t in rank
    ]


WIDTH, HEIGHT, EDGE = 760, 360, 60


def picture(trials: Sequence[Trial]) -> str:
    """Parallel coordinates as SVG: an axis for each parameter and the loss, a line a trial.

    The best trial's line is the thickest and dark; worse ones are paler.
    """
    shown = [trial for trial in trials if trial.loss is not None]
    names = [*(shown[0].values if shown else ()), "loss"]
    columns = [[_value(trial, name) for trial in shown] for name in names]
    step = (WIDTH - 2 * EDGE) / max(1, len(names) - 1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    places = []
    for index, (name, column) in enumerate(zip(names, columns, strict=True)):
        x = EDGE + index * step
        heights, low, high = _heights(column)
        places.append([(x, y) for y in heights])
        parts += [
            f'<line x1="{x:.0f}" x2="{x:.0f}" y1="{EDGE}" y2="{HEIGHT - EDGE}" stroke="#888"/>',
            _text(x, EDGE - 28, name),
            _text(x, EDGE - 10, high),
            _text(x, HEIGHT - EDGE + 20, low),
        ]
    worst_first = sorted(range(len(shown)), key=lambda i: -(shown[i].loss or 0.0))
    for rank, index in enumerate(worst_first, 1):
        best = rank == len(worst_first)
        points = " ".join(f"{column[index][0]:.1f},{column[index][1]:.1f}" for column in places)
        share = rank / len(worst_first)
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="#1f4e9c" '
            f'stroke-width="{3 if best else 1.5}" stroke-opacity="{0.2 + 0.8 * share:.2f}">'
            f"<title>{html.escape(shown[index].run)}: {shown[index].loss:.4f}</title></polyline>"
        )
    return "\n".join([*parts, "</svg>\n"])


def _value(trial: Trial, name: str) -> Any:
    return trial.loss if name == "loss" else trial.values[name]


def _heights(column: Sequence[Any]) -> tuple[list[float], str, str]:
    """Where each value lies on its axis, and what its ends are; words in order of appearance."""
    numbers = [value for value in column if isinstance(value, int | float)]
    if len(numbers) < len(column):
        words = list(dict.fromkeys(map(str, column)))
        at = [float(words.index(str(value))) for value in column]
        low, high = words[0], words[-1]
    else:
        positive = min(numbers, default=1.0) > 0
        wide = positive and max(numbers, default=1.0) / min(numbers, default=1.0) >= 100
        at = [math.log(value) if wide else float(value) for value in numbers]
        low, high = f"{min(numbers, default=0):.4g}", f"{max(numbers, default=0):.4g}"
    bottom, top = min(at, default=0.0), max(at, default=0.0)
    span = (top - bottom) or 1.0
    room = HEIGHT - 2 * EDGE
    return [HEIGHT - EDGE - room * (value - bottom) / span for value in at], low, high


def _text(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="middle">{html.escape(text)}</text>'
