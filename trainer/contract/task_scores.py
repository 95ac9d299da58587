"""When a finetuned model got worse at a task: what retraining decides by. Plain data."""

from collections.abc import Iterable, Mapping
from typing import Any


def worse_tasks(rows: Iterable[Mapping[str, Any]], max_drop: float | None) -> list[str]:
    """One phrase for each metric that got worse by more than `max_drop`; None: no limit.

    Metrics of which lm-eval does not say what is better are not judged.

    Args:
        rows: As the evaluate step leaves them in evaluation.json, under `tasks`.
    """
    if max_drop is None:
        return []
    return [
        f"{row['task']} {row['metric']} was {row['base']:.4f}, is {row['finetuned']:.4f}"
        for row in rows
        if row["higher_is_better"] is not None
        if _drop(row) > max_drop
    ]


def _drop(row: Mapping[str, Any]) -> float:
    fell = float(row["base"]) - float(row["finetuned"])
    return fell if row["higher_is_better"] else -fell
