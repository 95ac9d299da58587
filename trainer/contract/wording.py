"""Figures in words, the same in logs, on terminals and in tables."""

import re
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
    return ", ".join(figures_of(fields))


def figures_of(fields: Mapping[str, Any]) -> list[str]:
    """Each of those figures as a phrase: `loss 1.143`, `27 s left`."""
    return [
        _figure(f"{fields.get('unit')}_per_second" if name == "per_second" else name, value)
        for name, value in fields.items()
        if name not in _PLACE and value is not None
    ]


def _figure(name: str, value: Any) -> str:
    if name == "remaining_seconds":
        return f"{format_seconds(value)} left"
    unit = name.replace("_per_second", "/s").replace("_", " ")
    if isinstance(value, float):
        return f"{unit} {value:.4g}" if "/s" not in unit else f"{_count(value)} {unit}"
    return f"{_count(value)} {unit}" if "/s" in unit else f"{unit} {value}"


def _count(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:,.1f}"


def told_apart(*values: float, digits: int = 0) -> list[str]:
    """The values with as few decimals as show them different, at least `digits`, at most 9."""
    for places in range(digits, 10):
        texts = [f"{value:.{places}f}" for value in values]
        if len(set(texts)) == len(set(values)):
            return texts
    return texts


def format_bytes(size: float) -> str:
    """`12.1 GB`, `35.0 MB`, `4.2 kB`."""
    unit, name = next((u for u in _BYTES if size >= u[0]), _BYTES[-1])
    return f"{size / unit:,.1f} {name}"


_BYTES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def format_seconds(seconds: float) -> str:
    """`41 s`, `2:10 min`, `3:05:00 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}:{rest:02} min"
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02} h"


_MARKUP = re.compile(r"[\\`*_\[\]<>|~#&$!]")
_AT_THE_BEGINNING = re.compile(r"^(?:[-+=]|\d+(?=[.)]))")


def as_markdown_text(text: str) -> str:
    """Text of the data on one line of Markdown, shown as it is: no HTML, links, tables or lists.

    Source: CommonMark, section 2.4: a backslash before ASCII punctuation makes it plain.
    """
    line = _MARKUP.sub(lambda found: f"\\{found[0]}", " ".join(text.split()))
    begin = _AT_THE_BEGINNING.match(line)
    if not begin:
        return line
    if begin[0].isdecimal():
        return f"{begin[0]}\\{line[begin.end() :]}"
    return f"\\{line}"


def figure(value: Any) -> str:
    """A value as people write it: 12,345 or 0.8846; `-` where there is none."""
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4f}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value)


def part_words(part: Mapping[str, Any]) -> str:
    """What an epoch takes of a folder of a mixture: see trainer/tokens/mixture/making.py."""
    changed = ""
    if part["repeated"]:
        changed = f", {part['repeated']:,} of them again"
    elif part["left_out"]:
        changed = f", {part['left_out']:,} left out"
    replay = " (replay)" if part["replay"] else ""
    return (
        f"{100 * part['share']:.1f} % of the trained tokens{replay}: "
        f"{part['taken']:,} from {part['tokens']:,}{changed}"
    )


def skipped_words(figures: Mapping[str, Any], epochs: int = 1) -> str:
    """What `skip` leaves out of training, for people: see trainer/tokens/left_out.py."""
    each = f" in each of {epochs} epochs" if epochs > 1 else ""
    words = (
        f"{figures['contexts']:,} contexts with {figures['tokens']:,} trained tokens{each}, "
        f"for {figures['documents']:,} documents; {figures['other_documents']:,} other documents "
        f"lose {figures['tokens_of_others']:,} tokens with them"
    )
    if held := figures["held_out_contexts"]:
        words += (
            f"; {held:,} held-out contexts hold the documents and stay in validation, so that "
            "losses compare"
        )
    return words
