"""`make chaos-kubernetes`: kill -9 of the flow at each request that it makes to the cluster.

    python -m tests.kubernetes.chaos

A small run of the real flow, with a real Prefect server and real training, is followed once
undisturbed. Then it is run anew for each request that it made: the flow is killed there, put back
on schedule as the automation does, and started again. Requests that change something are met
twice, before they take effect and after. Each time there must be one Job a step, and the same
final model, byte for byte. About half a minute for each kill.
"""

import argparse
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.flow_engine import run_flow
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Crashed, Scheduled

from flows.finetune import finetune
from tests.kubernetes.conftest import CLAIM
from tests.kubernetes.job_history import jobs_seen
from tests.kubernetes.orchestrators import Orchestrators
from tests.kubernetes.pipeline import REQUEST
from tests.kubernetes.shipped import MANIFESTS, ORCHESTRATOR
from tests.kubernetes_double.cluster import Cluster
from tests.prefect_processes import prefect_environment, prefect_server

STEPS = ["fetch", "tokenize", "finetune", "evaluate"]
READING = ("get", "list", "watch")
TRAINING = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}


@dataclass
class Place:
    """The cluster, its volume, and what starts orchestrators."""

    cluster: Cluster
    volume: Path
    orchestrators: Orchestrators

    def run(self, run_name: str, kill_at: int = 0, *, before: bool = True) -> bool:
        """Run the flow, killed once and started again; whether it came to that request."""
        parameters = REQUEST.model_dump(exclude_unset=True) | {"run_name": run_name, "epochs": 2}
        with get_client(sync_client=True) as client:
            made = client.create_flow_run(finetune, parameters=parameters)
            given = {"flow_run_id": str(made.id)}
            if self.orchestrators.call("execute", kill_at=kill_at, before=before, **given):
                return False
            client.set_flow_run_state(made.id, Crashed(), force=True)
            client.set_flow_run_state(made.id, Scheduled(), force=True)
        assert self.orchestrators.call("execute", **given), f"{run_name} did not end"
        return True

    def check(self, run_name: str, expected: bytes) -> None:
        """Raise unless there was one Job a step, each with one pod, and the model is the same."""
        mine = [j for j in jobs_seen(self.cluster.history()) if j.name.startswith(f"{run_name}-")]
        seen = [(job.name.removeprefix(f"{run_name}-").split("-")[0], job.num_pods) for job in mine]
        assert seen == [(step, 1) for step in STEPS], f"{run_name}: {seen}"
        assert self.model(run_name) == expected, f"{run_name}: another model"

    def model(self, run_name: str) -> bytes:
        return (self.volume / run_name / "final/model.safetensors").read_bytes()


def execute(flow_run_id: str) -> bool:
    """Run the flow run in this process, as an orchestrator's pod does."""
    with get_client(sync_client=True) as client:
        flow_run: FlowRun = client.read_flow_run(uuid.UUID(flow_run_id))
    run_flow(finetune, flow_run=flow_run)
    return True


def kills(requests: list[Any]) -> Iterator[tuple[int, bool]]:
    """(number of the request, whether before it takes effect) of each kill."""
    for number, request in enumerate(requests, start=1):
        if request.verb not in READING:
            yield number, False
        yield number, True


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--from", dest="first", type=int, default=1, help="first request to kill at"
    )
    first = parser.parse_args().first
    with tempfile.TemporaryDirectory(prefix="chaos-kubernetes-") as folder:
        return chaos(Path(folder), first)


def chaos(folder: Path, first: int) -> int:
    from tests.flows.small_volume import make_volume  # loads torch, which orchestrators do not

    volume, prefect = make_volume(folder), folder / "prefect"
    prefect.mkdir()
    with (
        prefect_server(prefect) as url,
        Cluster(folder / "cluster", {CLAIM: volume}, manifests=MANIFESTS) as cluster,
    ):
        cluster.node.environment = TRAINING
        os.environ |= prefect_environment(prefect, url)
        os.environ["KUBECONFIG"] = str(cluster.node.kubeconfigs[ORCHESTRATOR])
        os.environ["FINETUNE_BACKEND"] = "kubernetes"
        os.environ["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] = "CRITICAL"
        with (
            temporary_settings({PREFECT_API_URL: url}),
            Orchestrators(cluster, folder, "tests.kubernetes.chaos") as orchestrators,
        ):
            return _chaos(Place(cluster, volume, orchestrators), first)


def _chaos(place: Place, first: int) -> int:
    place.run("undisturbed")
    requests = list(place.cluster.faults.seen)
    expected = place.model("undisturbed")
    place.check("undisturbed", expected)
    print(f"undisturbed: {len(requests)} requests, {len(STEPS)} Jobs", flush=True)
    done = 0
    for number, before in kills(requests):
        if number < first:
            continue
        asked, when = requests[number - 1], "unanswered" if before else "answered"
        run_name = f"at-{number}-{when}"
        if not place.run(run_name, number, before=before):
            break  # this time it was through with fewer requests
        place.check(run_name, expected)
        done += 1
        print(
            f"killed at request {number} ({asked.verb} {asked.resource}, {when}): same", flush=True
        )
        shutil.rmtree(place.volume / run_name)
    print(f"{done} kills, one Job a step each time, every final model the same")
    return 0


if __name__ == "__main__":
    sys.exit(main())
