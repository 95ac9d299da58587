"""One HTML file about a replay, which needs no network: curves, worst contexts, layers."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from trainer.replaying.replay import Replay, WhatIf
from trainer.report.curves import curves_svg

WORST = 20  # contexts that are shown with their text


def worst_contexts(made: Replay) -> list[dict[str, Any]]:
    """The contexts of highest loss, one that is not finite before all."""
    rows = [{"step": line["step"], **c} for line in made.measured for c in line["contexts"]]
    rows.sort(key=lambda row: (-_order(row["loss"]), row["step"], row["context"]))
    return rows[:WORST]


def page(run: str, made: Replay, texts: Mapping[int, str]) -> str:
    """The page.

    Args:
        texts: Of the worst contexts, by number.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    steps = made.again or made.recorded
    contexts = {line["step"]: [c["context"] for c in line["contexts"]] for line in made.measured}
    others = {line["step"]: line for line in made.what_if.again} if made.what_if else {}
    shown = [
        {
            "step": line["step"],
            **_figures(line),
            "contexts": ", ".join(map(str, contexts.get(line["step"], []))),
            "what_if": _figures(others[line["step"]]) if line["step"] in others else None,
        }
        for line in steps
    ]
    none: dict[str, Any] = {"step": 0, "layers": {}, "activations": {}}
    at = max(made.measured, key=_largest_gradient, default=none)
    return environment.get_template("page.html").render(
        run=run,
        first=made.recorded[0]["step"],
        last=made.recorded[-1]["step"],
        start=made.start,
        diverged=made.diverged,
        stopped=made.stopped,
        curves=curves_svg(steps, made.recorded[-1]["step"]),
        what_if=_about(made.what_if),
        worst=[
            {
                **row,
                "loss": _figure(row["loss"]),
                "documents": ", ".join(row["documents"]),
                "text": texts[row["context"]],
            }
            for row in worst_contexts(made)
        ],
        layer_step=at["step"],
        layers=[
            {
                "layer": layer,
                **{name: _figure(value) for name, value in norms.items()},
                **_range_of(at["activations"].get(layer)),
            }
            for layer, norms in at["layers"].items()
        ],
        steps=shown,
    )


def _about(what_if: WhatIf | None) -> dict[str, Any] | None:
    if what_if is None:
        return None
    last = what_if.again[-1]["step"] if what_if.again else 0
    return {
        "changed": json.dumps(what_if.changed),
        "stopped": what_if.stopped,
        "curves": curves_svg(what_if.again, last) if what_if.again else "",
    }


def what_if_in_words(what_if: WhatIf, made: Replay) -> str:
    """One line for a terminal: the changed parameters, and both losses of the last step."""
    changed = json.dumps(what_if.changed)
    if what_if.stopped:
        return f"what if {changed}: it ended early: {what_if.stopped}"
    was, now = made.recorded[-1], what_if.again[-1]
    return (
        f"what if {changed}, from step {made.start + 1} on: loss {_figure(now['loss'])} at step "
        f"{now['step']}, it was {_figure(was['loss'])}"
    )


def _range_of(ends: Mapping[str, float | None] | None) -> dict[str, str]:
    """Of a layer's activations; empty for what is no layer (embeddings, head)."""
    names = ("least", "largest")
    return {name: _figure(ends[name]) if ends else "" for name in names}


def _figures(line: Mapping[str, Any]) -> dict[str, str]:
    return {name: _figure(line[name]) for name in ("loss", "grad_norm", "learning_rate")}


def _largest_gradient(line: Mapping[str, Any]) -> float:
    return max((_order(norms["gradient_norm"]) for norms in line["layers"].values()), default=0.0)


def _order(value: float | None) -> float:
    return math.inf if value is None else value


def _figure(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.6g}"
