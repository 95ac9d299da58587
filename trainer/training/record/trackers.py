"""Who metrics go to beside metrics.jsonl."""

import importlib.util
import os
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from trainer.contract import run_files
from trainer.contract.events import say
from trainer.contract.json_files import all_lines
from trainer.contract.tracker_variables import MLFLOW, TRACKIO
from trainer.training.job import Job
from trainer.training.record import mlflow_runs, trackio_runs
from trainer.training.record.background import Background, Connection
from trainer.training.record.tensorboard import TensorBoard
from trainer.training.record.weights_and_biases import WeightsAndBiases, id_of


class Tracker(Protocol):
    """Takes in the lines of metrics.jsonl as they are written."""

    def add(self, line: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


# Trackers that are asked for as their users expect, by variables of their own.
BY_ENVIRONMENT: tuple[tuple[str, str, tuple[str, ...], Callable[..., Connection]], ...] = (
    ("MLflow", "mlflow", MLFLOW, mlflow_runs.MlflowRun),
    ("trackio", "trackio", TRACKIO, trackio_runs.TrackioRun),
)


def trackers_of(job: Job, step: int) -> list[Tracker]:
    """TensorBoard, and those that `wandb_key` and the environment ask for.

    Args:
        step: That the run resumes from.
    """
    trackers: list[Tracker] = [TensorBoard(job.curves, job.run.metrics, step)]
    if job.config.wandb_key:
        folder = job.curves.parent
        trackers.append(WeightsAndBiases(job.config.project_id, job.run, folder))
    for name, package, variables, connection in BY_ENVIRONMENT:
        if asking := next((v for v in variables if os.environ.get(v)), None):
            trackers += _tracker(job, name, package, asking, connection)
    return trackers


def _tracker(
    job: Job, name: str, package: str, asking: str, connection: Callable[..., Connection]
) -> list[Tracker]:
    """The tracker, or none where its package is missing: the variable may be meant for others."""
    if importlib.util.find_spec(package) is None:
        say(
            f"{asking} is set, but the package {package} is not installed: nothing is sent to "
            f"{name}. Install it (pip install 'finetune-pipeline[{package}]')."
        )
        return []
    record = job.run.record() or {}
    parameters = {**record.get("request", {}), "versions": record.get("versions", {})}
    project, run_name, run_id = job.config.project_id, job.run.root.name, id_of(job.run)

    def connect() -> Connection:
        return connection(project, run_name, run_id, parameters)

    # A damaged line keeps its number.
    lines = [line or {} for line in all_lines(job.run.metrics, run_files.Metric)]
    return [Background(name, connect, lines)]
