"""`finetune reproduce RUN` and `finetune fork RUN`: new runs out of what a run recorded."""

import contextlib
import importlib.metadata
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows.comparing import dataset_changes, first_difference, same_model
from flows.overview import known_run
from flows.parameters import Parameters
from trainer.checkpoints import read_manifest, steps_there, verify
from trainer.checkpoints.folder import name_of
from trainer.checkpoints.links import link_or_copy
from trainer.config import load_parameters
from trainer.errors import RequestError
from trainer.outcome import write_atomically
from trainer.run_folder import RunFolder

# What may be another in a fork: the data, its order and the model's form stay.
FORKABLE = frozenset(
    "learn_rate warmup_ratio epochs save_steps checkpoints prompt_file prompt_every prompt_tokens "
    "prompt_samples top_k top_p temperature repetition_penalty wandb_key project_id logs "
    "run_inference serving".split()
)


def recorded_parameters(run: RunFolder, pvc: str, name: str, **changed: Any) -> Parameters:
    """The parameters that the run was asked with, for a run called `name`."""
    record = run.record() or {}
    known = {k: v for k, v in record["request"].items() if k in Parameters.model_fields}
    return load_parameters(Parameters, {**known, "run_name": name, "pvc": pvc, **changed})


def what_is_missing(run: RunFolder, home: Path, pvc: str) -> list[str]:
    """What stands in the way of the same bytes: versions, data, tokenizer."""
    record, volume = run.record() or {}, home / pvc
    found = []
    for name, version in record.get("versions", {}).items():
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            if (here := importlib.metadata.version(name)) != version:
                found.append(f"{name} is {here} here, was {version}")
    model = volume / record.get("model", "")
    if not (model / "config.json").is_file():
        found.append(f"the base model is not on the volume ({record.get('model')})")
    found += dataset_changes(run, volume / record["request"]["dataset"])
    return found


def reproduced(run: RunFolder, again: RunFolder) -> tuple[bool, str]:
    """Whether the second run made the same weights, and a sentence that says so."""
    step = first_difference(run, again)
    if same_model(run, again):
        return True, f"{again.root.name} is {run.root.name} bit for bit"
    where = "the steps' losses are the same" if step is None else f"losses differ at step {step}"
    return False, f"{again.root.name} is not {run.root.name}: other weights, {where}"


def fork(home: Path, pvc: str, run_name: str, step: int | None, asked: Parameters) -> int:
    """Make the folder of a run that goes on from a checkpoint of another; the checkpoint's step.

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
        "request": {**record["request"], **_changed(record["request"], asked)},
        "forked_from": {"run": run_name, "step": about["step"]},
    }
    write_atomically(new.record_path, json.dumps(made, indent=1))
    return about["step"]


def _changed(request: Mapping[str, Any], asked: Parameters) -> dict[str, Any]:
    return {name: value for name, value in asked.request.items() if name in request}


def refuse_what_cannot_fork(assignments: Mapping[str, Any]) -> None:
    """Raise RequestError for parameters that a fork has to share with its run."""
    wrong = [name for name in assignments if name not in FORKABLE]
    if wrong:
        raise RequestError(
            *(
                f"{name} can't be another in a fork. It goes on with the run's data, order and "
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
