"""How many more nights fit on the volume, by what the nights before took.

After each night a line is kept in `retrain/{series}/space.jsonl`, the newest `MOST_LINES` of them:

    {"time": ..., "free_bytes": on the volume, "series_bytes": of all runs of the series,
     "night_bytes": of the newest run before its checkpoints went, "final_bytes": after,
     "finals": how many final models there are}
"""

import json
import shutil
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from trainer.contract.files import write_atomically
from trainer.contract.json_files import read_lines
from trainer.retention.nights import runs_of, with_final
from trainer.retention.removal import bytes_of, folders_of
from trainer.retraining.series import Series, now

MOST_LINES = 60
MOST_NIGHTS = 365  # further than this nobody can tell
WARNED_NIGHTS = 7  # so few are told of


@with_config(ConfigDict(extra="allow", strict=True))
class Space(TypedDict):
    time: str
    free_bytes: int
    series_bytes: int
    night_bytes: int
    final_bytes: int
    finals: int


def measure(series: Series, night_bytes: int) -> Space:
    """What the volume holds now of the series, and what is free there."""
    own = runs_of(series)
    finals = with_final(series.volume, own)
    return {
        "time": now(),
        "free_bytes": shutil.disk_usage(series.volume).free,
        "series_bytes": sum(run_bytes(series.volume, name) for name in own),
        "night_bytes": night_bytes,
        "final_bytes": run_bytes(series.volume, finals[0]) if finals else 0,
        "finals": len(finals),
    }


def run_bytes(volume: Path, name: str) -> int:
    """Bytes of a run with its logs and events."""
    return sum(map(bytes_of, folders_of(volume, name)))


def keep_line(series: Series, line: Space) -> None:
    """Add a line, and drop the oldest ones."""
    lines = [*read_lines(series.space_path, Space), line][-MOST_LINES:]
    write_atomically(series.space_path, "".join(f"{json.dumps(each)}\n" for each in lines))


def nights_left(lines: Sequence[Space], keep_finals: int) -> int | None:
    """How many more nights fit; None: more than a year's, or none was measured.

    A night fits while what is free holds all that it writes before older runs go. What stays of
    it counts until there are `keep_finals`; after that an older run goes for it. All else that
    grows on the volume counts as the median of what it grew by in the nights before.
    """
    if not lines:
        return None
    last, free = lines[-1], float(lines[-1]["free_bytes"])
    others = max(0.0, median([_grown(*pair) for pair in pairwise(lines)] or [0.0]))
    for night in range(MOST_NIGHTS):
        if free < last["night_bytes"]:
            return night
        stays = last["final_bytes"] if last["finals"] + night < keep_finals else 0
        free -= stays + others
    return None


def _grown(before: Space, after: Space) -> float:
    """Bytes by which all but the series grew on the volume from one night to the next."""
    used = before["free_bytes"] - after["free_bytes"]
    return used - (after["series_bytes"] - before["series_bytes"])


def nights_left_of(volume: Path, series: str, keep_finals: int = 3) -> int | None:
    """As `nights_left`, by what is free now; None where there is no such series."""
    lines: list[Space] = list(read_lines(Series(volume, series).space_path, Space))
    if not lines:
        return None
    newest: Space = lines[-1].copy()
    newest["free_bytes"] = shutil.disk_usage(volume).free
    return nights_left([*lines[:-1], newest], keep_finals)
