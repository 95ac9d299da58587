"""Figures in words, the same in logs, on terminals and in tables."""

from collections.abc import Mapping
from typing import Any

_PLACE = ("label", "done", "total", "unit")


def describe_progress(fields: Mapping[str, Any]) -> str:
    """One line for people: `finetune 120/400 steps, loss 2.31, 8,123 tokens/s, 2:10 min left`."""
    done, total = fields.get("done", 0), fields.get("total")
    share = f"{_count(done)}/{_count(total)}" if total else _count(done)
    place = f"{fields.get('label', '')} {share} {fields.get('unit', '')}".strip()
    return ", ".join(part for part in (place, describe_figures(fields)) if part)


def describe_figures(fields: Mapping[str, Any]) -> str:
    """The figures of a progress event that stand beside its bar."""
    return ", ".join(
        _figure(f"{fields.get('unit')}_per_second" if name == "per_second" else name, value)
        for name, value in fields.items()
        if name not in _PLACE and value is not None
    )


def _figure(name: str, value: Any) -> str:
    if name == "remaining_seconds":
        return f"{format_seconds(value)} left"
    unit = name.replace("_per_second", "/s").replace("_", " ")
    if isinstance(value, float):
        return f"{unit} {value:.4g}" if "/s" not in unit else f"{_count(value)} {unit}"
    return f"{_count(value)} {unit}" if "/s" in unit else f"{unit} {value}"


def _count(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:,.1f}"


def format_seconds(seconds: float) -> str:
    """`41 s`, `2:10 min`, `3:05:00 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}:{rest:02} min"
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02} h"
