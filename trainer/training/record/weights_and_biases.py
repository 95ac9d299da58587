"""Metrics on Weights & Biases, each line of metrics.jsonl once.

The number of a line in metrics.jsonl is its step there, so when a run resumes it is
known what arrived: what is missing is sent again, what is there is left alone. Without
a network the lines are kept in `{logs}/{run_name}/wandb` for `wandb sync`.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.contract import run_files
from trainer.contract.events import say
from trainer.contract.json_files import all_lines
from trainer.contract.run_folder import RunFolder

CONNECT_SECONDS = 60.0
SEND_SECONDS = 60.0  # at the end of a step that may be about to be killed


class WeightsAndBiases:
    """One run there, under the same id however often the run here continues.

    What goes wrong with it is said and never ends the training.
    """

    def __init__(self, project: str, run: RunFolder, folder: Path) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        self._errors = (wandb.Error, OSError)
        folder.mkdir(parents=True, exist_ok=True)
        self._run: Any = None
        known = {"project": project, "name": run.root.name, "id": id_of(run), "dir": str(folder)}
        try:
            self._run = self._begin(wandb, known, run.record() or {})
            self._next, self._there = 0, self._run.step
            for line in all_lines(run.metrics, run_files.Metric):
                self.add(line or {})  # a damaged line keeps its number
        except self._errors as error:
            self._give_up(error)

    def add(self, line: Mapping[str, Any]) -> None:
        """Take in the next line of metrics.jsonl."""
        if self._run is None:
            return
        try:
            if self._next >= self._there:
                values = {name: value for name, value in line.items() if value is not None}
                self._run.log(values, step=self._next, commit=True)
            self._next += 1
        except self._errors as error:
            self._give_up(error)

    def close(self) -> None:
        """Send what is left; what can't be sent stays in the folder."""
        if self._run is None:
            return
        try:
            self._run.finish()
        except self._errors as error:
            self._give_up(error)

    def _begin(self, wandb: Any, known: dict[str, Any], record: Mapping[str, Any]) -> Any:
        """Connect; without a network, or with WANDB_MODE=offline, write to the folder."""
        mode = os.environ.get("WANDB_MODE", "online")
        config = {**record.get("request", {}), "versions": record.get("versions", {})}
        options = {**known, "config": config, "resume": "allow"}
        settings = wandb.Settings(
            console="off",  # the step's lines are read by its follower
            silent=True,
            disable_git=True,
            disable_code=True,
            x_disable_stats=True,  # memory and speed are in the lines
            init_timeout=CONNECT_SECONDS,
            finish_timeout=SEND_SECONDS,
            finish_timeout_raises=False,
        )
        try:
            made = wandb.init(**options, mode=mode, settings=settings)
        except (wandb.errors.CommError, wandb.errors.UsageError) as error:
            say(f"Weights & Biases can't be reached ({error}): metrics are kept for wandb sync")
            made = wandb.init(**options, mode="offline", settings=settings)
        if made.offline:
            _remove_earlier(Path(known["dir"]), known["id"], Path(made.dir).parent)
        made.define_metric("step", hidden=True)
        made.define_metric("*", step_metric="step")
        return made

    def _give_up(self, error: Exception) -> None:
        say(f"Weights & Biases takes no more metrics ({error}). metrics.jsonl has them all.")
        self._run = None


def id_of(run: RunFolder) -> str:
    """Made from when the run was admitted: a run that starts over is another one."""
    record = run.record() or {}
    made_from = [run.root.name, record.get("created"), record.get("request")]
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]


def _remove_earlier(folder: Path, run_id: str, newest: Path) -> None:
    """Delete what earlier processes of the run kept: the newest has every line."""
    import shutil

    for earlier in (folder / "wandb").glob(f"offline-run-*-{run_id}"):
        if earlier.resolve() != newest.resolve():
            shutil.rmtree(earlier)
