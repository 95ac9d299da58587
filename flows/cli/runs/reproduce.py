"""`finetune reproduce RUN` and `finetune fork RUN`: new runs out of what a run recorded."""

import contextlib
import importlib.metadata
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows.cli.runs.diff import dataset_changes, first_difference, other_digests, same_model
from flows.cli.runs.overview import known_run
from trainer.contract.checkpoints import name_of, steps_there
from trainer.contract.errors import DamagedError, RequestError
from trainer.contract.files import link_or_copy
from trainer.contract.later_keys import LATER, NEW_TOPICS
from trainer.contract.nested_names import with_value
from trainer.contract.parameters import Parameters
from trainer.contract.run_folder import RunFolder
from trainer.contract.sealed_folder import read_manifest, verify
from trainer.contract.validation import load_parameters

# What may be another in a fork: the data, its order and the model's form stay.
FORKABLE = frozenset(
    "learn_rate warmup_ratio schedule epochs save_steps checkpoints prompt_file prompt_every "
    "prompt_tokens prompt_samples top_k top_p temperature repetition_penalty wandb_key project_id "
    "logs run_inference serving trainer_gpus".split()
) | {f"optimizer.{name}" for name in LATER["optimizer"]}


def recorded_parameters(
    run: RunFolder, pvc: str, name: str, changed: Mapping[str, Any]
) -> Parameters:
    """The parameters that the run was asked with, for a run called `name`.

    As many processes as it had, all on this machine: they decide how many contexts make a step.

    Raises:
        RequestError: It was adopted, so what it was asked is not known.
    """
    record = run.record() or {}
    if "adopted" in record:
        raise RequestError(
            f"RUN was trained by the reference's workflow (got {run.root.name!r}). What it was "
            "asked is not recorded. Start a new run instead."
        )
    return parameters_of_record(record, pvc, name, changed)


def parameters_of_record(
    record: Mapping[str, Any], pvc: str, name: str, changed: Mapping[str, Any]
) -> Parameters:
    """As `recorded_parameters`, of what run.json holds."""
    known = {k: v for k, v in record["request"].items() if k in Parameters.model_fields}
    known["trainer_gpus"] = math.prod(processes_and_nodes(record))
    known |= {"run_name": name, "pvc": pvc}
    for parameter, value in changed.items():
        known = with_value(known, parameter, value)
    return load_parameters(Parameters, known)


def processes_and_nodes(record: Mapping[str, Any]) -> tuple[int, int]:
    config = record.get("config", {})
    return config.get("processes", 1), config.get("nodes", 1)


def refuse_unfinished(run: RunFolder) -> None:
    """Raise RequestError where there are no final weights that a reproduction could equal."""
    try:
        read_manifest(run.final)
    except DamagedError as error:
        raise RequestError(unfinished(run.root.name)) from error


def unfinished(name: str) -> str:
    """The sentence of a run that has no final weights."""
    return (
        f"RUN has no final model to compare with (got {name!r}). Run it to its end first: "
        f"`finetune show {name}` says how far it is, and what it was asked."
    )


def worked_out(run: RunFolder) -> dict[str, Any]:
    """What was left to the program and may come out otherwise on this machine.

    That is batch_size and gradients, and where a budget ended the schedule.
    """
    record = run.record() or {}
    found: dict[str, Any] = {}
    sizing = record.get("sizing", {})
    if record["request"].get("batch_size", -1) < 0:
        found |= {name: sizing[name] for name in ("batch_size", "gradients") if sizing.get(name)}
    if ends := _figures(run).get("budget_ends"):
        found["budget"] = {"ends": ends}
    return found


def _figures(run: RunFolder) -> Mapping[str, Any]:
    """What its training came to."""
    outcome = run.outcome("finetune")
    return outcome.result if outcome else {}


def fork_point(run: RunFolder) -> tuple[str, int] | None:
    """Run and step of a good copy of the checkpoint that the run was forked from, if any."""
    record = run.record() or {}
    forked = record.get("forked_from")
    if not forked:
        return None
    own, parent = run.root.name, RunFolder(run.root.parent, forked["run"])
    # A parent that was started over since has other checkpoints under the same names.
    is_same = (parent.record() or {}).get("created", "~") <= record["created"]
    for name in (own, forked["run"]) if is_same else (own,):
        place = RunFolder(run.root.parent, name).checkpoints / name_of(forked["step"])
        if place.is_dir() and not verify(place):
            return name, forked["step"]
    return None


def what_is_missing(run: RunFolder, home: Path, pvc: str) -> list[str]:
    """What stands in the way of the same bytes: versions, data, tokenizer, how it was trained."""
    record, volume = run.record() or {}, home / pvc
    found = []
    for name, version in record.get("versions", {}).items():
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            if (here := importlib.metadata.version(name)) != version:
                found.append(f"{name} is {here} here, was {version}")
    model = volume / record.get("model", "")
    if not (model / "config.json").is_file():
        found.append(f"the base model is not on the volume ({record.get('model')})")
    return found + dataset_changes(run, volume, record["request"]["dataset"]) + _not_repeated(run)


def _not_repeated(run: RunFolder) -> list[str]:
    """What happened to the run that making it again does not do."""
    record, found = run.record() or {}, []
    processes, nodes = processes_and_nodes(record)
    if nodes > 1:
        found.append(
            f"it trained on {nodes} machines with {processes} process(es) each; here all "
            f"{processes * nodes} are on one"
        )
    forked = record.get("forked_from")
    if forked and fork_point(run) is None:
        found.append(
            f"it was forked from step {forked['step']} of {forked['run']}, and that checkpoint "
            "is gone: it begins with the base model"
        )
    figures = _figures(run)
    if (planned := figures.get("steps_planned")) and not figures.get("budget_ends"):
        found.append(
            f"its budget ended it after {figures['steps']:,} of {planned:,} steps; all are done now"
        )
    return found


def reproduced(run: RunFolder, again: RunFolder) -> tuple[bool, str]:
    """Whether the second run made the same weights, and a sentence that says so."""
    step = first_difference(run, again)
    if same_model(run, again):
        return True, f"{again.root.name} is {run.root.name} bit for bit"
    where = "the steps' losses are the same" if step is None else f"losses differ at step {step}"
    others = "".join(f", {name} is another" for name in other_digests(run, again))
    return False, f"{again.root.name} is not {run.root.name}: other weights, {where}{others}"


def fork(home: Path, pvc: str, run_name: str, step: int | None, asked: Parameters) -> int:
    """Make the folder of a run that resumes from a checkpoint of another; the checkpoint's step.

    The checkpoint's files are linked where the volume can, else copied; tokens and base
    model are those of the first run.

    Raises:
        RequestError: There is no such checkpoint, it is damaged, or the name is taken.
    """
    run, new = known_run(home, pvc, run_name), RunFolder(home / pvc, asked.run_name)
    checkpoint = _checkpoint(run, step)
    if new.root.exists():
        raise RequestError(
            f"--as is taken (got {asked.run_name!r}). Take a name that no run has yet."
        )
    about = read_manifest(checkpoint).about
    _refuse_the_end(run, about, asked)
    _link(checkpoint, new.checkpoints / checkpoint.name)
    for path in (run.metrics, run.samples):
        size = about["records"].get(path.name, 0)
        if path.exists():
            (new.root / path.name).write_bytes(path.read_bytes()[:size])
    record: Mapping[str, Any] = run.record() or {}
    made = {
        **record,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "attempt": "",
        "plan": {},
        "request": _forked(record["request"], asked),
        "forked_from": {"run": run_name, "step": about["step"]},
    }
    new.write_record(made)
    return about["step"]


def _refuse_the_end(run: RunFolder, about: Mapping[str, Any], asked: Parameters) -> None:
    """Raise RequestError where the checkpoint is already where the new run would end."""
    if "num_contexts" not in about:
        return
    each = math.ceil(about["num_contexts"] / about["global_batch"])
    if about["step"] < min(each * asked.epochs, asked.schedule.max_steps or math.inf):
        return
    there = ", ".join(map(str, steps_there(run.checkpoints)))
    raise RequestError(
        f"--step is where the new run ends (got {about['step']}): nothing is left to train. "
        f"Take an earlier one (there are: {there}), or more {_more(asked, each)}."
    )


def _more(asked: Parameters, steps_per_epoch: int) -> str:
    """What to raise so that a fork has more steps."""
    most = asked.schedule.max_steps
    if most and most < steps_per_epoch * asked.epochs:
        return f"steps: -p schedule.max_steps={2 * most}"
    return f"epochs: -p epochs={asked.epochs + 1}"


def refuse_other_fork(record: Mapping[str, Any], run: str, step: int | None, name: str) -> None:
    """Raise RequestError where the run `name` is no fork of this run and step."""
    forked = record.get("forked_from") or {"run": "", "step": 0}
    if forked["run"] != run or step not in (None, forked["step"]):
        what = f"it began at step {forked['step']} of {forked['run']}" if forked["run"] else "a run"
        raise RequestError(
            f"--as is taken (got {name!r}, {what}). Take a name that no run has yet."
        )


def _forked(request: Mapping[str, Any], asked: Parameters) -> dict[str, Any]:
    """The request of a fork: what it asks; a new topic that it has at its defaults is left out."""
    before = {name: value for name, value in request.items() if name not in NEW_TOPICS}
    taken = {*request, *NEW_TOPICS}
    return before | {name: value for name, value in asked.request.items() if name in taken}


def refuse_what_cannot_fork(assignments: Mapping[str, Any]) -> None:
    """Raise RequestError for parameters that a fork has to share with its run."""
    wrong = [name for name in assignments if not {name, name.partition(".")[0]} & FORKABLE]
    if wrong:
        raise RequestError(
            *(
                f"{name} can't be another in a fork. It continues with the run's data, order and "
                f"model; {', '.join(sorted(FORKABLE))} may change. Start a new run instead."
                for name in wrong
            )
        )


def _checkpoint(run: RunFolder, step: int | None) -> Path:
    there = steps_there(run.checkpoints)
    if not there or (step is not None and step not in there):
        raise RequestError(
            f"--step is no checkpoint of {run.root.name} (got {step}). "
            f"There are: {', '.join(map(str, sorted(there))) or 'none'}."
        )
    path = run.checkpoints / name_of(max(there) if step is None else step)
    if problems := verify(path):
        raise RequestError(f"--step names a damaged checkpoint ({path.name}: {problems[0]}).")
    return path


def _link(checkpoint: Path, place: Path) -> None:
    # A link costs nothing and outlives the pruning of either; the manifest goes last.
    files = [path for path in sorted(checkpoint.rglob("*")) if path.is_file()]
    files.sort(key=lambda path: path.name == "manifest.json")
    for path in files:
        target = place / path.relative_to(checkpoint)
        target.parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(path, target)
