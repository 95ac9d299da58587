"""What a plan is made from, as the volume has it: plain data that fits a step's outcome.

Read where the volume is: by the command line and local flows themselves, on a cluster by
the plan step. Nothing is written but a listing that steps share. Importing
this loads nothing heavy.
"""

import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from trainer.config import TokenizeConfig
from trainer.context_count import count_contexts
from trainer.memory_model import GIB
from trainer.model_shape import ModelShape
from trainer.run_folder import RunFolder

if TYPE_CHECKING:
    from trainer.tokens.sources import Source

EARLIER_RUNS = 5  # of a kind, the newest: older ones ran on what may be another machine by now
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
    """Whether the run is there already: it goes on, whatever a plan says now."""
    fetches: bool
    """Whether the base model is still to come to the volume."""
    corrections: dict[str, float]
    """Measured over planned seconds of a step, by class of GPU; '' is the CPU."""

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
    sources: "list[Source] | None" = None,
) -> PlanFacts:
    """The facts for a request.

    Args:
        config: What the tokenize step would do; `run_name` may be empty.
        model_config: The base model's config.json.
        num_contexts: Of a dataset that is not there; None: count them.
        sources: The dataset's files, where they were listed already.
    Raises:
        RequestError: The dataset is missing, empty or can't be read.
        ValueError: The model's config.json says too little to plan with.
    """
    volume, shape = Path(config.volume), ModelShape.from_config(model_config)
    here = volume / config.model
    counted = count_contexts(config, sources) if num_contexts is None else None
    return PlanFacts(
        shape=shape,
        num_contexts=counted.num_contexts if counted else num_contexts or 0,
        num_train_contexts=counted.num_train_contexts if counted else None,
        estimated=counted.estimated if counted else False,
        free_gib=shutil.disk_usage(volume).free / GIB if volume.is_dir() else None,
        admitted=bool(config.run_name) and RunFolder(volume, config.run_name).record() is not None,
        fetches=not any(next(here.glob(kind), None) for kind in ("*.safetensors", "*.bin")),
        corrections=corrections(volume, shape.parameters),
    )


def corrections(volume: Path, parameters: int) -> dict[str, float]:
    """Measured over planned seconds of a step, by class of GPU, for a model of that size.

    Runs of models of the same size count; where there are none, all of that class do.
    """
    found: dict[str, list[tuple[bool, str, float]]] = {}
    for path in volume.glob("*/run.json"):
        record = RunFolder(volume, path.parent.name).record() or {}
        planned, seconds = record.get("plan"), step_seconds(path.with_name("metrics.jsonl"))
        if planned and not planned["gpu"] and "on_cpu" not in planned:
            continue  # by an earlier version, which planned with a slower CPU
        if planned and planned["seconds_per_step"] and seconds:
            ratio = seconds * planned["correction"] / planned["seconds_per_step"]
            same = planned["parameters"] == parameters
            found.setdefault(planned["gpu"], []).append((same, record["created"], ratio))
    return {gpu: _of_newest(runs) for gpu, runs in found.items()}


def _of_newest(runs: list[tuple[bool, str, float]]) -> float:
    alike = [run for run in runs if run[0]] or runs
    return median(ratio for _, _, ratio in sorted(alike)[-EARLIER_RUNS:])


def step_seconds(metrics: Path) -> float | None:
    """What a step of the run took, the median of its newest ones; None before there are two."""
    lines = [line for line in _tail(metrics) if "loss" in line]
    took = [b["seconds"] - a["seconds"] for a, b in pairwise(lines) if b["step"] == a["step"] + 1]
    return median(took) if took else None


def _tail(metrics: Path) -> Iterator[dict[str, Any]]:
    if not metrics.exists():
        return
    with open(metrics, "rb") as file:
        start = max(0, metrics.stat().st_size - TAIL_BYTES)
        file.seek(start)
        lines = file.read().split(b"\n")
    # The first may be cut by the seek, the last is still being written, or empty.
    for line in lines[bool(start) : -1]:
        yield json.loads(line)
