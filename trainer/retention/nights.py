"""Which runs of a series of retrainings stay, and removing the others.

A run of the series stays whole while it is one of the newest `keep_finals` with a final model,
is the champion or was it before, serves, runs, or is named by the record of a run that stays for
such a reason. Of those that stay, all but the newest `keep_checkpoints_of` lose their
checkpoints, except those that another run was forked or made from, or that stay for replays.

A night that stays only since another was trained from it (start_from=last) keeps its own base no
more: else each night would keep the one before it, for ever.
"""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from trainer.contract.checkpoints import clear_parts, delete, name_of, steps_there
from trainer.contract.run_folder import RunFolder, damaged_records, run_names
from trainer.contract.sealed_folder import MANIFEST
from trainer.contract.topics import RetentionConfig
from trainer.retention import needed
from trainer.retention.removal import (
    LOGS,
    bytes_of,
    finish_removals,
    folders_of,
    own_bytes,
    remove_run,
)
from trainer.retraining.series import Series, series_names

UNUSED_SECONDS = 7 * 86_400.0  # of token stores and cached pieces that no run names
LOG_SECONDS = 30 * 86_400.0  # of logs whose run is gone


class Removable(NamedTuple):
    """One thing that goes, or would go."""

    path: Path
    size: int  # bytes that it frees
    reason: str


def runs_of(series: Series) -> list[str]:
    """The runs of the series that are on the volume, the newest first."""
    named = dict.fromkeys(d["run"] for d in series.decisions() if d.get("run"))
    return [name for name in reversed(named) if (series.volume / name).is_dir()]


def with_final(volume: Path, runs: list[str]) -> list[str]:
    """Those of the runs that have a final model."""
    return [name for name in runs if (RunFolder(volume, name).final / MANIFEST).exists()]


def staying(series: Series, keep: RetentionConfig) -> set[str]:
    """The runs of the series that stay, by the rule above."""
    volume, own = series.volume, runs_of(series)
    roots = {*with_final(volume, own)[: keep.keep_finals]}
    roots |= {run for run, _ in needed.series_needs(series)}
    roots |= {name for name in own if needed.is_needed_itself(volume, name)}
    others = {name for name in run_names(volume) if name not in own}
    named = {run for name in roots | others for run, _ in needed.named_by(volume, name)}
    of_others = {
        run for each in series_names(volume) for run, _ in needed.series_needs(Series(volume, each))
    }
    return {name for name in own if name in roots | named | of_others}


def retain(series: Series, keep: RetentionConfig, *, dry_run: bool = False) -> list[Removable]:
    """Remove what of the series goes; a dry run only says what would.

    Nothing goes while a run.json on the volume is damaged: it may name any run.

    Returns:
        What went, or would go, with the bytes that it frees.
    """
    volume = series.volume
    if not dry_run:
        finish_removals(volume)
    if damaged_records(volume):
        return []
    stay, own = staying(series, keep), runs_of(series)
    gone = []
    for name in own:
        if name in stay:
            continue
        paths = folders_of(volume, name)
        item = Removable(volume / name, own_bytes(paths), f"an older run of {series.name}")
        if dry_run or remove_run(volume, name):
            gone.append(item)
    return gone + list(_checkpoints(series, own, stay, keep, dry_run=dry_run))


def _checkpoints(
    series: Series, own: list[str], stay: set[str], keep: RetentionConfig, *, dry_run: bool
) -> Iterator[Removable]:
    for name in own[keep.keep_checkpoints_of :]:
        if name not in stay or needed.is_busy(series.volume, name):
            continue
        folder = RunFolder(series.volume, name).checkpoints
        kept = needed.needed_steps(series.volume, name)
        there = [folder / name_of(s) for s in steps_there(folder) if s not in kept]
        there += sorted(folder.glob("damaged-*"))
        for path in there:
            yield Removable(path, own_bytes([path]), "a checkpoint of a run that is decided on")
            if not dry_run:
                delete(path)
        if not dry_run:
            clear_parts(folder)


def old_logs(volume: Path, *, dry_run: bool = False) -> list[Removable]:
    """Logs and events of runs that are gone, a month after they were written to last."""
    known = {*run_names(volume), *series_names(volume)}
    before, gone = time.time() - LOG_SECONDS, []
    folders = [p for p in sorted((volume / LOGS).glob("*")) if p.is_dir() and p.name not in known]
    for folder in folders:
        if not is_of_a_run(folder) or needed.is_busy(volume, folder.name):
            continue
        if _newest(folder) < before:
            gone.append(Removable(folder, bytes_of(folder), "logs of a run that is gone"))
            if not dry_run:
                delete(folder)
    return gone


def is_of_a_run(folder: Path) -> bool:
    """Whether steps wrote there: a user may have other folders in the one for logs."""
    names = {path.name for path in folder.iterdir()}
    return bool(names) and all(n == "tensorboard" or ".log" in n or n[0] == "." for n in names)


def _newest(folder: Path) -> float:
    times = [0.0]
    for path in (folder, *folder.rglob("*")):
        with contextlib.suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times)


def unused_tokens(volume: Path, *, dry_run: bool = False) -> list[Removable]:
    """Token stores and cached pieces that no run names and nothing used for a week."""
    from trainer.tokens.prune import prune  # loads numpy

    found = prune(volume, dry_run=dry_run, used_lately_seconds=UNUSED_SECONDS)
    return [Removable(item.path, item.size, item.reason) for item in found]
