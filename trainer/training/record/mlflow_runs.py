"""Metrics on MLflow, where MLFLOW_TRACKING_URI says: a server, or sqlite:///FILE.

The experiment is MLFLOW_EXPERIMENT_NAME, else `project_id`. A metric named `line` holds the
number of each line of metrics.jsonl; its last value says what has arrived.
"""

import os
import time
from collections.abc import Mapping
from typing import Any

from trainer.contract.tracker_variables import MLFLOW
from trainer.training.record.background import Numbered

RUN_TAG = "finetune.run"  # which a run is found by when it is resumed
LINE = "line"
_LONGEST_PARAMETER = 500  # MLflow's databases hold no longer ones before version 2.8


class MlflowRun:
    """One run there, under the same id however often the run here is resumed."""

    def __init__(self, project: str, name: str, run_id: str, parameters: Mapping[str, Any]) -> None:
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(os.environ[MLFLOW[0]])
        experiment = self._experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or project)
        query = f"tags.`{RUN_TAG}` = '{run_id}'"
        found = self._client.search_runs([experiment], query, max_results=1)
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            made = self._client.create_run(experiment, run_name=name, tags={RUN_TAG: run_id})
            self._id = made.info.run_id
            self._say_parameters(parameters)
        known = self._client.get_run(self._id).data.metrics
        self.there = int(known.get(LINE, -1)) + 1

    def send(self, lines: list[Numbered]) -> None:
        """Add lines, all of them in one request: a server takes it whole or not at all."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [
            Metric(name, float(value), now, line["step"])
            for number, line in lines
            if "step" in line  # of a damaged one nothing is known
            for name, value in {**line, LINE: number}.items()
            if name != "step" and isinstance(value, int | float)
        ]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self) -> None:
        self._client.set_terminated(self._id)

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name))
            except MlflowException:  # another run made it meanwhile
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)

    def _say_parameters(self, parameters: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        said = [Param(name, str(value)[:_LONGEST_PARAMETER]) for name, value in parameters.items()]
        for begin in range(0, len(said), 100):  # of one request
            self._client.log_batch(self._id, params=said[begin : begin + 100])
