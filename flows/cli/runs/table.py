"""The list of runs as text that fits a terminal: whole where there is room, else what matters."""

from collections.abc import Mapping, Sequence

from flows.cli.runs.overview import RunRow
from trainer.contract.wording import format_bytes

_BETWEEN = "  "
# Where the terminal is narrow, columns go in this order, then long names are cut.
_LESS = ("dataset", "model", "cost", "begun")
_CUT = ("name", "state")
_LEAST = 8  # characters that stay of a name
Row = Mapping[str, str]


def runs_table(rows: Sequence[RunRow], columns: int = 0) -> str:
    """The list as aligned text, and a line for each damaged record.

    Args:
        rows: The runs.
        columns: What the terminal has; 0: as many as are needed.
    """
    if not rows:
        return "no runs"
    cells = [_cells(row) for row in rows]
    names = [name for name in cells[0] if any(row[name] not in ("", "-") for row in cells)]
    for less in (*_LESS, ""):
        widths = {n: max(len(n), *(len(row[n]) for row in cells)) for n in names}
        if not columns or _width(widths) <= columns or not less:
            break
        names = [name for name in names if name != less]
    while columns and (over := _width(widths) - columns) > 0:
        widest = max(_CUT, key=lambda name: widths.get(name, 0))
        if widths[widest] <= _LEAST:
            break
        widths[widest] = max(_LEAST, widths[widest] - over)
    lines = [_line({name: name for name in names}, widths), *(_line(c, widths) for c in cells)]
    return "\n".join([*lines, *(f"{row.name}: {phrase}" for row in rows for phrase in row.damaged)])


def _cells(row: RunRow) -> Row:
    return {
        "name": row.name,
        "state": row.state,
        "model": row.model,
        "dataset": row.dataset,
        "before": _loss(row.base_loss),  # on held-out text, as the next one
        "after": _loss(row.loss),
        "cost": "-" if row.dollars is None else f"${row.dollars:,.2f}",
        "size": format_bytes(row.bytes) if row.bytes else "-",
        "begun": row.created[:16].replace("T", " "),
    }


def _width(widths: Mapping[str, int]) -> int:
    return sum(widths.values()) + len(_BETWEEN) * (len(widths) - 1)


def _line(cells: Row, widths: Mapping[str, int]) -> str:
    return _BETWEEN.join(_fitted(cells[n], width) for n, width in widths.items()).rstrip()


def _fitted(text: str, width: int) -> str:
    return text.ljust(width) if len(text) <= width else text[: width - 1] + "…"


def _loss(value: float | None) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else "-"
