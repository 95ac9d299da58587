"""What every benchmark ends with: ratios within one run, and how they are compared with before.

    from benchmarks.ratios import say_ratio
    say_ratio("training over bare loop", 1.02)              higher is better
    say_ratio("checkpoint stall over copy", 1.0, higher=False)

`python -m benchmarks` reads these lines, compares them with ratios.json beside this file, and fails
where one is worse by a fifth or more. Seconds are not compared: they are the machine's.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RECORDED = Path(__file__).with_name("ratios.json")
MOST_LOSS = 0.2
_MARK = "::ratio "


@dataclass(frozen=True)
class Ratio:
    """A figure that does not depend on how fast the machine is."""

    name: str
    value: float
    higher: bool = True
    """Whether more is better."""

    def loss(self, before: float) -> float:
        """The share by which it is worse than it was; negative: better."""
        if self.higher:
            return 1 - self.value / before
        return self.value / before - 1


def say_ratio(name: str, value: float, *, higher: bool = True) -> None:
    """Print a ratio for a person, and for `python -m benchmarks`."""
    line = json.dumps({"name": name, "value": round(value, 4), "higher": higher})
    print(_MARK + line, flush=True)


def ratio_in(line: str) -> Ratio | None:
    """The ratio that a printed line says, if it says one."""
    return Ratio(**json.loads(line.removeprefix(_MARK))) if line.startswith(_MARK) else None


def read(path: Path = RECORDED) -> dict[str, dict[str, Any]]:
    """The recorded ratios by name: `value`, `higher`, and `measured`, when and how."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def record(ratios: Iterable[Ratio], measured: str, path: Path = RECORDED) -> None:
    """Make these the recorded ones; the others stay."""
    new = {r.name: {"value": r.value, "higher": r.higher, "measured": measured} for r in ratios}
    text = json.dumps(dict(sorted({**read(path), **new}.items())), indent=1)
    path.write_text(text + "\n", encoding="utf-8")


def compared(ratios: Iterable[Ratio], before: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A line for each: now, before, and how they compare."""
    for ratio in ratios:
        if ratio.name not in before:
            yield f"{ratio.name}: {ratio.value:g}, not recorded before"
            continue
        was = before[ratio.name]["value"]
        change = f"worse by {ratio.loss(was):.0%}" if ratio.loss(was) > 0 else "no worse"
        yield f"{ratio.name}: {ratio.value:g}, was {was:g}: {change}"


def lost(ratios: Iterable[Ratio], before: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names of those that are worse by a fifth or more."""
    known = [ratio for ratio in ratios if ratio.name in before]
    return [r.name for r in known if r.loss(before[r.name]["value"]) >= MOST_LOSS - 1e-9]
