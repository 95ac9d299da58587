"""Who needs a run. A run that anybody here names is not removed.

What names a run: the record of another one (its base model, its tokenizer, the run that it was
forked from, or made from by `finetune forget`), a series of retrainings (its champion, the one
before, the night in training), its service, one that has its adapter, a step that runs, and
`cache/in-use/{run}`, which the fetch step touches: a run that begins has no record yet. Loads
nothing heavy.
"""

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer.contract import adapters_record, service_history
from trainer.contract.checkpoints import for_replays, steps_there
from trainer.contract.errors import DamagedError
from trainer.contract.json_files import readable_object
from trainer.contract.locks import taken
from trainer.contract.process_time import process_started
from trainer.contract.run_folder import RunFolder, damaged_records, run_names
from trainer.contract.sealed_folder import MANIFEST
from trainer.retraining.series import Series, series_names

STEPS_FOLDER = ".runs"  # locks and configs of steps of this machine: infra/local/processes.py
IN_USE = "cache/in-use"
IN_USE_SECONDS = 7 * 86_400.0
SILENT_SECONDS = 86_400.0  # for which an unfinished run must not have written anything
Reason = tuple[str, str]  # the run or series that needs it, and a phrase that says for what


def who_needs(volume: Path, name: str) -> list[str]:
    """One phrase for each that needs the run `name`, or works on it; none: it may go."""
    found = [phrase for _, phrase in _doing(volume, name)]
    found += [phrase for _, phrase in _of_series(volume, name)]
    found += [
        phrase
        for other in run_names(volume)
        if other != name
        for named, phrase in named_by(volume, other)
        if named == name
    ]
    others = [damage for damage in damaged_records(volume) if not damage.startswith(f"{name}/")]
    return found + [f"{damage} It may name {name}." for damage in others]


def named_by(volume: Path, name: str) -> list[Reason]:
    """The other runs that the record of `name` names, each with what for."""
    with contextlib.suppress(DamagedError):  # see `damaged_records`
        record = RunFolder(volume, name).record() or {}
        forked = record.get("forked_from") or {}
        found = {(run, f"{name} was made from {text}") for run, text in _paths(record)}
        if run := forked.get("run"):
            found.add((run, f"{name} was forked from step {forked.get('step')} of {run}"))
        if run := (record.get("forgets") or {}).get("run"):
            found.add((run, f"the certificate of {name} is computed from {run}"))
        found |= set(_served_beside(volume, name))
        known = set(run_names(volume)) - {name}
        return sorted(reason for reason in found if reason[0] in known)
    return []


def _served_beside(volume: Path, name: str) -> Iterator[Reason]:
    """The runs whose adapters the service of `name` has beside its own model."""
    for path in (volume / STEPS_FOLDER / name / "service").glob(adapters_record.PATTERN):
        if serves(volume, name):
            for wanted in adapters_record.read(path).values():
                run = Path(wanted.model).parts[0]
                yield run, f"the service of {name} answers as {run}, too"


def needed_steps(volume: Path, name: str) -> set[int]:
    """The checkpoints of the run that are needed as long as the run stays.

    From some others were forked, and may be again. From some `finetune forget` began, and its
    certificate is held to them. Some stay for replays, by `checkpoints.keep_every`.
    """
    steps = set()
    for other in run_names(volume):
        with contextlib.suppress(DamagedError):
            record = RunFolder(volume, other).record() or {}
            for begun in (record.get("forked_from") or {}, record.get("forgets") or {}):
                if begun.get("run") == name:
                    steps.add(begun["step"])
    run = RunFolder(volume, name)
    with contextlib.suppress(DamagedError):
        asked = (run.record() or {}).get("config", {}).get("checkpoints") or {}
        steps |= set(for_replays(steps_there(run.checkpoints), asked.get("keep_every", 0)))
    return steps


def is_busy(volume: Path, name: str) -> bool:
    """Whether anybody may be working on the run: a step or orchestrator, here or on a cluster."""
    return next(_working(volume, name), None) is not None


def is_needed_itself(volume: Path, name: str) -> bool:
    """Whether it runs, serves, or is in use, whatever other runs' records say."""
    return next(_doing(volume, name), None) is not None


def serves(volume: Path, name: str) -> bool:
    """Whether the run's model answers clients, as far as the volume knows.

    A service of this machine is a process, which can be looked for; one of a cluster serves
    until a line of its history says that it was stopped.
    """
    run = RunFolder(volume, name)
    entries = service_history.read_history(run)
    if not entries or entries[-1]["event"] == "stopped":
        return False
    record = readable_object(run.root / "service.json")
    if record is None:
        return True
    with contextlib.suppress(KeyError, TypeError, ValueError):
        return process_started(int(record["pid"])) == record["process_started"]
    return True


def used_lately(volume: Path, name: str) -> bool:
    """Whether a run that begins has looked at the run's model within a week."""
    with contextlib.suppress(OSError):
        return (volume / IN_USE / name).stat().st_mtime > time.time() - IN_USE_SECONDS
    return False


def mark_in_use(volume: Path, path: Path) -> None:
    """Note that a run begins which uses a folder of another run, where `path` is in one."""
    parts = path.relative_to(volume).parts
    if len(parts) > 1 and RunFolder(volume, parts[0]).is_admitted:
        with contextlib.suppress(OSError):  # a volume that takes no writes
            (volume / IN_USE).mkdir(parents=True, exist_ok=True)
            (volume / IN_USE / parts[0]).touch()


def _doing(volume: Path, name: str) -> Iterator[Reason]:
    yield from _working(volume, name)
    if serves(volume, name):
        yield name, "it serves (finetune stop ends that)"
    if used_lately(volume, name):
        yield name, "a run that began within a week uses its model"
    yield from _used_by_steps(volume, name)


def _working(volume: Path, name: str) -> Iterator[Reason]:
    places = volume / STEPS_FOLDER / name
    steps = [path.parent.name for path in sorted(places.glob("*/lock")) if taken(path)]
    if steps or taken(places / "lock"):
        yield name, f"it runs ({', '.join(steps) or 'between two steps'})"
    elif not _is_finished(volume, name) and _written_lately(RunFolder(volume, name)):
        yield name, "it is not finished, and was written to within a day"


def _is_finished(volume: Path, name: str) -> bool:
    return (RunFolder(volume, name).final / MANIFEST).exists()


def _written_lately(run: RunFolder) -> bool:
    """Whether a step of a cluster may be at it, whose lock is not seen here."""
    times = []
    for path in (run.metrics, run.checkpoints, run.samples):
        with contextlib.suppress(OSError):
            times.append(path.stat().st_mtime)
    return max(times, default=0.0) > time.time() - SILENT_SECONDS


def _used_by_steps(volume: Path, name: str) -> Iterator[Reason]:
    """Steps of this machine that run, of other runs, whose config names the run."""
    for config in sorted((volume / STEPS_FOLDER).glob("*/*/config.json")):
        other = config.parents[1].name
        if other == name or not taken(config.with_name("lock")):
            continue
        if name in {run for run, _ in _paths(readable_object(config) or {})}:
            yield other, f"the {config.parent.name} step of {other}, which runs, uses it"


def _of_series(volume: Path, name: str) -> Iterator[Reason]:
    for each in series_names(volume):
        for run, phrase in series_needs(Series(volume, each)):
            if run == name:
                yield each, phrase


def series_needs(series: Series) -> list[Reason]:
    """The runs that a series needs: its champion, the one before, the one in training, its base."""
    found = []
    if champion := series.champion():
        found.append((champion["run"], f"it is the champion of {series.name}"))
    earlier = [d["run"] for d in series.promoted() if not champion or d["run"] != champion["run"]]
    if earlier:
        found.append((earlier[-1], f"it was the champion of {series.name} before this one"))
    if pending := series.pending():
        found.append((pending["run"], f"{series.name} is training it"))
        base = pending["model"].split("/")[0]
        found.append((base, f"{series.name} is training {pending['run']} from it"))
    return found


def _paths(value: Any) -> Iterator[tuple[str, str]]:
    """First folder and whole text of each string in a JSON value that may be a path."""
    if isinstance(value, str):
        if os.sep in value:
            yield value.split(os.sep)[0], value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _paths(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _paths(part)
