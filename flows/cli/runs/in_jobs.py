"""Commands that repeat a run, as Jobs of a cluster: the volume is there alone."""

import math
import os
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.cli.options import read_parameters
from flows.cli.runs.reproduce import processes_and_nodes
from flows.cli.terminal import PlainWatcher, RichWatcher, watcher_for
from infra.choose_backend import BACKEND_VARIABLE, backend_from_environment
from tasks import configs
from tasks.following import follow_step
from tasks.specs import step_spec
from trainer.contract.asked_process import result_of
from trainer.contract.errors import RequestError
from trainer.contract.json_text import parse_json
from trainer.contract.outcome import Outcome
from trainer.contract.parameters import Parameters, cluster_settings
from trainer.contract.validation import load_parameters


class _Printing:
    """Shows bars as other steps do, prints lines, and keeps the result."""

    def __init__(self, shown: PlainWatcher | RichWatcher) -> None:
        self.result, self._shown = "", shown
        self.started, self.event = shown.started, shown.event

    def line(self, step: str, text: str) -> None:
        if (result := result_of(text)) is None:
            print(text, flush=True)
        else:
            self.result = result

    def ended(self, step: str, outcome: Outcome) -> None:
        pass


def with_processes_of(record: Mapping[str, Any], parameters: Parameters) -> Parameters:
    """The parameters with as many processes as the run had: they decide which contexts make a step.

    Raises:
        RequestError: The cluster's nodes can't have as many each.
    """
    processes, nodes = math.prod(processes_and_nodes(record)), cluster_settings(parameters).nodes
    if processes % nodes:
        raise RequestError(
            f"cluster.nodes does not divide the {processes} processes of {parameters.run_name} "
            f"(got {nodes}). Set it to a number that does."
        )
    return parameters.model_copy(update={"trainer_gpus": processes // nodes})


class Jobs:
    """Runs parts of a command as Jobs, with what the run recorded of its machine."""

    def __init__(self, pvc: str, run: str, file: Path | None) -> None:
        """Ask the cluster what the run recorded.

        Args:
            file: Parameters of this cluster (image, GPU, region); the rest is the run's.
        Raises:
            RequestError: There is no such run, or no cluster.
        """
        os.environ[BACKEND_VARIABLE] = "kubernetes"
        self.run, self.attempt = run, uuid.uuid4().hex
        self.parameters = read_parameters((), file, run_name=run, pvc=pvc)
        self.record = self.recorded(run)
        if not self.record:
            raise RequestError(f"RUN is not a run on the volume {pvc} (got {run!r}).")
        known = self.record["request"] | {"run_name": run, "pvc": pvc}
        asked = {k: v for k, v in known.items() if k in Parameters.model_fields}
        here = self.parameters.model_dump(exclude_unset=True)
        found = load_parameters(Parameters, {**asked, **here})
        self.parameters = with_processes_of(self.record, found)

    def recorded(self, run: str) -> dict[str, Any]:
        """What a run recorded of itself; empty where there is none of the name."""
        return parse_json(self.act("look", run=run)[1])

    def act(
        self,
        action: str,
        words: list[str] | None = None,
        *,
        command: str = "",
        given: Mapping[str, Any] | None = None,
        run: str = "",
    ) -> tuple[int, str]:
        """Exit code and result of a part, once its Job has ended.

        Args:
            run: Another run than the one that was asked about.
        """
        config = configs.again_config(
            self.parameters.model_dump(),
            action=action,
            run=run or self.run,
            command=command,
            words=words or [],
            given=None if given is None else dict(given),
        )
        spec = step_spec(self.parameters.model_dump(), "again", config, attempt=self.attempt)
        try:
            backend = backend_from_environment("", cluster_settings(self.parameters))
        except ValueError as error:
            raise RequestError(str(error)) from error
        shown = watcher_for(sys.stderr)
        watcher = _Printing(shown)
        try:
            outcome = follow_step(backend, spec, [watcher])
        finally:
            shown.close()
        return outcome.result["exit_code"], watcher.result
