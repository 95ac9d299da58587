"""Held-out losses of a mixture by folder."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from trainer.contract.part_losses import forgetting_words
from trainer.tokens.store import TokenStore

LossOn = Callable[[np.ndarray], float | None]
"""Mean held-out loss on some contexts."""


def losses_by_part(store: TokenStore, loss_on: LossOn) -> dict[str, float | None]:
    """The held-out loss of each folder; None where it has no held-out text."""
    return {part["name"]: loss_on(np.arange(*part["held_out"])) for part in store.manifest.parts}


def mean_of_parts(store: TokenStore, losses: Mapping[str, float | None]) -> float | None:
    """The loss over all held-out tokens, from those of the folders."""
    tokens = {
        part["name"]: store.trained_tokens(np.arange(*part["held_out"]))
        for part in store.manifest.parts
    }
    known = {name: loss for name, loss in losses.items() if loss is not None}
    count = sum(tokens[name] for name in known)
    return sum(loss * tokens[name] for name, loss in known.items()) / count if count else None


def compared_parts(
    store: TokenStore, base: Mapping[str, float | None], after: Mapping[str, float | None]
) -> list[dict[str, Any]]:
    """A row for each folder: name, replay, tokens (held out), base_loss, loss."""
    return [
        {
            "name": part["name"],
            "replay": part["replay"],
            "tokens": store.trained_tokens(np.arange(*part["held_out"])),
            "base_loss": base[part["name"]],
            "loss": after[part["name"]],
        }
        for part in store.manifest.parts
    ]


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The rows for people, in Markdown; none where there are none."""
    if not rows:
        return []
    lines = ["## Held-out loss by folder", ""]
    lines += ["| folder | tokens | base | finetuned |", "| --- | ---: | ---: | ---: |"]
    for row in rows:
        figures = [row["base_loss"], row["loss"]]
        shown = " | ".join("-" if figure is None else f"{figure:.4f}" for figure in figures)
        name = row["name"].replace("|", "\\|") + (" (replay)" if row["replay"] else "")
        lines.append(f"| {name} | {row['tokens']:,} | {shown} |")
    words = forgetting_words(rows)
    return [*lines, "", *([words[0].upper() + words[1:] + ".", ""] if words else [])]
