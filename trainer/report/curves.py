"""Curves of training as one SVG: training and validation loss, and the learning rate."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

Point = tuple[float, float]

WIDTH, HEIGHT = 860, 380
LEFT, RIGHT, TOP = 60, 70, 28
LOSS_HEIGHT, RATE_TOP, RATE_HEIGHT = 220, 290, 54
MOST_POINTS = 400  # more can't be told apart at this width
TICKS = 4
TRAINING, VALIDATION, RATE = "#4c78a8", "#e45756", "#72b7b2"


def curves_svg(metrics: Iterable[Mapping[str, Any]], total_steps: int | None = None) -> str:
    """The picture of lines of metrics.jsonl; says so where there are none yet.

    Args:
        metrics: Of one run, in order.
        total_steps: The run's last step, where it is known: the axis goes up to it.
    """
    lines = list(metrics)
    loss = [(m["step"], m["loss"]) for m in lines if m.get("loss") is not None]
    held_out = [(m["step"], m["eval_loss"]) for m in lines if m.get("eval_loss") is not None]
    rate = [(m["step"], m["learning_rate"]) for m in lines if m.get("learning_rate") is not None]
    if not loss:
        return _svg([_text(WIDTH / 2, HEIGHT / 2, "no step is done yet", "middle")])
    end = float(max(total_steps or 0, loss[-1][0]))
    parts = _axes(end, *_range([*loss, *held_out]), TOP, LOSS_HEIGHT)
    parts += _axes(end, 0.0, max(value for _, value in rate) or 1.0, RATE_TOP, RATE_HEIGHT)
    place = _placer(end, *_range([*loss, *held_out]), TOP, LOSS_HEIGHT)
    parts.append(_line(map(place, _thinned(loss)), TRAINING))
    parts.append(_line(map(place, held_out), VALIDATION))
    parts += [
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{VALIDATION}"/>'
        for x, y in map(place, held_out)
    ]
    rate_place = _placer(end, 0.0, max(value for _, value in rate) or 1.0, RATE_TOP, RATE_HEIGHT)
    parts.append(_line(map(rate_place, _thinned(rate)), RATE))
    parts.append(_text(WIDTH / 2, HEIGHT - 8, "optimizer steps", "middle"))
    return _svg([*parts, *_legend(loss, held_out, rate)])


def _legend(*curves: Sequence[Point]) -> list[str]:
    names = ("training loss", "validation loss", "learning rate")
    parts, x = [], float(LEFT)
    for name, colour, points in zip(names, (TRAINING, VALIDATION, RATE), curves, strict=True):
        if points:
            shown = f"{name} {points[-1][1]:.4g}"
            parts.append(f'<rect x="{x}" y="8" width="14" height="4" fill="{colour}"/>')
            parts.append(_text(x + 20, 14, shown))
            x += 40 + 7 * len(shown)
    return parts


def _range(points: Sequence[Point]) -> tuple[float, float]:
    low, high = min(y for _, y in points), max(y for _, y in points)
    margin = (high - low) * 0.05 or 0.5
    return low - margin, high + margin


def _placer(end: float, low: float, high: float, top: int, height: int) -> Any:
    """From a step and a value to a place in the picture."""

    def place(point: Point) -> Point:
        x = LEFT + (WIDTH - LEFT - RIGHT) * point[0] / end
        return x, top + height * (high - point[1]) / (high - low)

    return place


def _axes(end: float, low: float, high: float, top: int, height: int) -> list[str]:
    place = _placer(end, low, high, top, height)
    ticks = TICKS if height > 100 else 1
    parts = []
    for number in range(ticks + 1):
        value = low + (high - low) * number / ticks
        _, y = place((0, value))
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
        )
        parts.append(_text(LEFT - 6, y + 4, f"{value:.3g}", "end"))
    for number in range(TICKS + 1):
        x, _ = place((end * number / TICKS, low))
        parts.append(_text(x, top + height + 16, f"{end * number / TICKS:,.0f}", "middle"))
    return parts


def _thinned(points: Sequence[Point]) -> list[Point]:
    """At most MOST_POINTS means of neighbours; the last point stays as it is."""
    size = -(-len(points) // MOST_POINTS)
    if size == 1:
        return list(points)
    groups = (points[start : start + size] for start in range(0, len(points), size))
    means = [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups]
    return [*means, points[-1]]


def _line(points: Iterable[Point], colour: str) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>'


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text, quote=False)}</text>'
    )


def _svg(parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="12" fill="#333">'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>{"".join(parts)}</svg>'
    )
