"""What a plan is made from, as the volume has it: plain data that fits a step's outcome.

Read where the volume is: by the command line and local flows themselves, on a cluster by
the plan step. Nothing is written but a listing that steps share. Importing
this loads nothing heavy.
"""

import contextlib
import dataclasses
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from trainer.contract import run_files
from trainer.contract.errors import DamagedError, RequestError
from trainer.contract.json_files import parsed_line
from trainer.contract.run_folder import RunFolder, run_names
from trainer.contract.step_configs import FetchConfig, TokenizeConfig
from trainer.parameter_counts import shape_of
from trainer.plan.context_count import count_contexts
from trainer.plan.left_out import left_out_facts
from trainer.planning.gates import context_problems
from trainer.planning.memory_model import GIB
from trainer.planning.model_shape import ModelShape
from trainer.retention.space import nights_left_of

if TYPE_CHECKING:
    from trainer.tokens.text.sources import SourceList

EARLIER_RUNS = 5  # of a kind, the newest: older ones ran on what may be another machine by now
# What a plan of an earlier run has to say. Before `on_cpu`, plans were of a slower CPU.
_OF_PLAN = ("gpu", "on_cpu", "seconds_per_step", "correction", "parameters")
TAIL_BYTES = 1 << 18  # of metrics.jsonl: several hundred steps


@dataclass(frozen=True, kw_only=True)
class PlanFacts:
    """The model's dimensions, the dataset's size, and what earlier runs measured."""

    shape: ModelShape
    num_contexts: int
    num_train_contexts: int | None
    """Those that are not held out; None where that is not known exactly."""
    estimated: bool
    free_gib: float | None
    admitted: bool
    """Whether the run exists already: it resumes, whatever a plan says now."""
    fetches: bool
    """Whether the base model is still to come to the volume."""
    corrections: dict[str, float]
    """Measured over planned seconds of a step, by class of GPU; '' is the CPU."""
    trained_tokens: int | None = None
    """Of whole records: those of an epoch that are trained; None: of plain text in a stream."""
    padding_share: float | None = None
    """Of whole records: the share of all contexts' ids that is padding; None: not known."""
    left_out_share: float | None = None
    """Of whole records: the share of the text that too_long drops or cuts; None: not known."""
    parts: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """Of a mixture: what is taken of each folder."""
    exam_problems: list[str] = dataclasses.field(default_factory=list)
    """Why the model exam refuses the model, where its result is known."""
    nights_left: int | None = None
    """Where the run is one of a series of retrainings: how many more nights fit on the volume."""
    left_out: dict[str, Any] | None = None
    """What `skip` leaves out, where the tokens are there; None: nothing, or not known yet."""
    skip_problems: list[str] = dataclasses.field(default_factory=list)
    """What `skip` names that is not in the dataset."""
    builtin_wrong: str = ""
    """What the exam found wrong with the built-in server; empty: nothing, or not examined."""

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PlanFacts":
        """Undo `to_dict`."""
        return cls(**{**values, "shape": ModelShape(**values["shape"])})


def gather(
    config: TokenizeConfig,
    model_config: Mapping[str, Any],
    num_contexts: int | None = None,
    sources: "SourceList | None" = None,
    lora: Any = None,
) -> PlanFacts:
    """The facts for a request.

    Args:
        config: What the tokenize step would do; `run_name` may be empty.
        model_config: The base model's config.json.
        num_contexts: Of a dataset that is not there; None: count them.
        sources: The dataset's files, where they were listed already.
        lora: The topic, where adapters are asked for.
    Raises:
        RequestError: The dataset is missing, empty or can't be read.
        ValueError: The model's config.json says too little to plan with.
    """
    volume = Path(config.volume)
    shape = shape_of(model_config, volume, lora=lora)
    here = volume / config.model
    try:
        counted = count_contexts(config, sources) if num_contexts is None else None
        omitted, problems = left_out_facts(config, sources) if counted else (None, [])
    except RequestError as error:  # said with what is wrong with the model
        too_large = context_problems(shape, {"context": config.context})
        raise RequestError(*error.problems, *too_large) from error
    return PlanFacts(
        left_out=omitted,
        skip_problems=problems,
        shape=shape,
        num_contexts=counted.num_contexts if counted else num_contexts or 0,
        num_train_contexts=counted.num_train_contexts if counted else None,
        estimated=counted.estimated if counted else False,
        trained_tokens=counted.trained_tokens if counted else None,
        padding_share=counted.padding_share if counted else None,
        left_out_share=counted.left_out_share if counted else None,
        parts=counted.parts if counted else [],
        free_gib=shutil.disk_usage(volume).free / GIB if volume.is_dir() else None,
        admitted=bool(config.run_name) and RunFolder(volume, config.run_name).is_admitted,
        fetches=not _has_weights(here),
        corrections=corrections(volume, shape.parameters),
        nights_left=_nights_left(volume, config.run_name),
    )


def _nights_left(volume: Path, run_name: str) -> int | None:
    """Of the series that the run is one of, or that has its name."""
    series = re.sub(r"-\d{8}(-\d{1,3})?$", "", run_name)
    return nights_left_of(volume, series) if series else None


def refused(config: FetchConfig, *, with_dataset: bool) -> "tuple[list[str], SourceList | None]":
    """What the fetch step would refuse, and the dataset's files.

    Args:
        config: Of the fetch step.
        with_dataset: Whether the plan is made with the dataset.
    """
    from trainer.fetch.step import refusals

    problems, _, sources = refusals(config, with_dataset=with_dataset)
    return problems, sources or None


def _has_weights(folder: Path) -> bool:
    """Whether there are weights; what is wrong with them, the fetch step says."""
    names = ("model.safetensors", "model.safetensors.index.json")
    return any((folder / name).exists() for name in names) or any(folder.glob("*.bin"))


def corrections(volume: Path, parameters: int) -> dict[str, float]:
    """Measured over planned seconds of a step, by class of GPU, for a model of that size.

    Runs of models of the same size count; where there are none, all of that class do.
    """
    found: dict[str, list[tuple[bool, str, float]]] = {}
    for name in run_names(volume):
        run = RunFolder(volume, name)
        with contextlib.suppress(DamagedError):  # of another run: the plan does without it
            record = run.record() or {}
            planned, seconds = record.get("plan", {}), step_seconds(run.metrics)
            if not seconds or not {*_OF_PLAN} <= {*planned} or not planned["seconds_per_step"]:
                continue
            ratio = seconds * planned["correction"] / planned["seconds_per_step"]
            same = planned["parameters"] == parameters
            found.setdefault(planned["gpu"], []).append((same, record["created"], ratio))
    return {gpu: _of_newest(runs) for gpu, runs in found.items()}


def _of_newest(runs: list[tuple[bool, str, float]]) -> float:
    alike = [run for run in runs if run[0]] or runs
    return median(ratio for _, _, ratio in sorted(alike)[-EARLIER_RUNS:])


def step_seconds(metrics: Path) -> float | None:
    """What a step of the run took, the median of its newest ones; None before there are two."""
    lines = [line for line in _tail(metrics) if "loss" in line and "seconds" in line]
    took = [b["seconds"] - a["seconds"] for a, b in pairwise(lines) if b["step"] == a["step"] + 1]
    return median(took) if took else None


def _tail(metrics: Path) -> Iterator[dict[str, Any]]:
    if not metrics.is_file():
        return
    with open(metrics, "rb") as file:
        start = max(0, metrics.stat().st_size - TAIL_BYTES)
        file.seek(start)
        lines = file.read().split(b"\n")
    # The first may be cut by the seek, the last is still being written, or empty.
    for line in lines[bool(start) : -1]:
        if (found := parsed_line(line, run_files.Metric)) is not None:
            yield found
