"""What a finetuned model forgot: what reports show, and retraining decides by. Plain data."""

from collections.abc import Iterable, Mapping
from typing import Any


def forgotten(rows: Iterable[Mapping[str, Any]]) -> float | None:
    """How much the loss on held-out general text rose; None: there is none."""
    for row in rows:
        if row["replay"] and row["loss"] is not None and row["base_loss"] is not None:
            return float(row["loss"]) - float(row["base_loss"])
    return None


def forgetting_words(rows: Iterable[Mapping[str, Any]]) -> str:
    """What it forgot, for people; empty where that was not measured."""
    rows = list(rows)
    rise = forgotten(rows)
    if rise is None:
        return ""
    [row] = [row for row in rows if row["replay"]]
    how = "rose" if rise > 0 else "fell"
    return (
        f"what it forgot: the loss on general text ({row['name']}) {how} by {abs(rise):.4f}, "
        f"{row['base_loss']:.4f} before, {row['loss']:.4f} after"
    )
