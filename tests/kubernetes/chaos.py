"""`make chaos-kubernetes`: kill -9 of the flow at each request that it makes to the cluster.

    python -m tests.kubernetes.chaos

First the API is away for a minute in mid-training. Then a small run of the real flow, with a
real Prefect server and real training, is followed once undisturbed, and run anew for each request
that it made: the flow is killed there, put back on schedule as the automation does, and started
again. Requests that change something are met twice, before they take effect and after. Each time
there must be one Job a step, and the same final model, byte for byte. About half a minute a kill.
"""

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
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
from trainer.contract.run_folder import RunFolder

STEPS = ["plan", "fetch", "tokenize", "finetune", "evaluate"]
LONG_EPOCHS = 60
READING = ("get", "list", "watch")
TRAINING = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}


@dataclass
class Place:
    """The cluster, its volume, and what starts orchestrators."""

    cluster: Cluster
    volume: Path
    orchestrators: Orchestrators

    def schedule(self, run_name: str, epochs: int = 2) -> uuid.UUID:
        """Make a run of the flow; its id."""
        changed = {"run_name": run_name, "epochs": epochs}
        parameters = REQUEST.model_dump(exclude_unset=True) | changed
        with get_client(sync_client=True) as client:
            return client.create_flow_run(finetune, parameters=parameters).id

    def follow(self, flow_run_id: uuid.UUID, **kill: Any) -> bool:
        """Run the flow run in a process of its own; whether it ended, and was not killed."""
        return bool(self.orchestrators.call("execute", flow_run_id=str(flow_run_id), **kill))

    def run(self, run_name: str, kill_at: int, *, before: bool) -> bool:
        """Run the flow, killed once and started again; whether it came to that request."""
        flow_run_id = self.schedule(run_name)
        if self.follow(flow_run_id, kill_at=kill_at, before=before):
            return False
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(flow_run_id, Crashed(), force=True)
            client.set_flow_run_state(flow_run_id, Scheduled(), force=True)
        assert self.follow(flow_run_id), f"{run_name} did not end"
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
        flow_run = client.read_flow_run(uuid.UUID(flow_run_id))
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
    parser.add_argument("--from", dest="first", type=int, default=1, help="request to begin at")
    parser.add_argument("--outage-seconds", type=float, default=60.0)
    args = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="chaos-kubernetes-") as folder,
        a_place(Path(folder)) as place,
    ):
        outage(place, args.outage_seconds)
        kill_at_each_request(place, args.first)
    return 0


@contextlib.contextmanager
def a_place(folder: Path) -> Iterator[Place]:
    """A guarded cluster, a volume with text and a model, and a Prefect server."""
    from tests.flows.small_volume import make_volume  # loads torch, which orchestrators do not

    volume, prefect = make_volume(folder), folder / "prefect"
    prefect.mkdir()
    with (
        prefect_server(prefect) as url,
        Cluster(folder / "cluster", {CLAIM: volume}, manifests=MANIFESTS) as cluster,
        temporary_settings({PREFECT_API_URL: url}),
    ):
        cluster.node.environment = TRAINING
        os.environ |= prefect_environment(prefect, url) | {
            "KUBECONFIG": str(cluster.node.kubeconfigs[ORCHESTRATOR]),
            "FINETUNE_BACKEND": "kubernetes",
            "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        }
        with Orchestrators(cluster, folder, "tests.kubernetes.chaos") as orchestrators:
            yield Place(cluster, volume, orchestrators)


def outage(place: Place, seconds: float) -> None:
    """The API is away for so long in mid-training: the log says so, and nothing else happens."""
    assert place.follow(place.schedule("calm", LONG_EPOCHS))
    metrics = RunFolder(place.volume, "outage").metrics
    trained: list[int] = []

    def go_away() -> None:
        place.cluster.wait_for(lambda: metrics.exists() and metrics.read_bytes())
        for down in (True, False):
            place.cluster.faults.down = down
            trained.append(metrics.read_bytes().count(b"\n"))
            if down:
                place.cluster.do(place.cluster.faults.cut_streams)
                time.sleep(seconds)

    thread = threading.Thread(target=go_away)
    thread.start()
    flow_run_id = place.schedule("outage", LONG_EPOCHS)
    assert place.follow(flow_run_id)
    thread.join()
    place.check("outage", place.model("calm"))
    with get_client(sync_client=True) as client:
        mine = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run_id]))
        logs = client.read_logs(mine, limit=200)
    said = [entry.message for entry in logs if "the cluster" in entry.message]
    lines = metrics.read_bytes().count(b"\n")
    away = f"from line {trained[0]} of metrics to {trained[1]} of {lines}"
    print(f"API away for {seconds:g} s, {away}: {said}", flush=True)


def kill_at_each_request(place: Place, first: int) -> None:
    """Kill the flow at each request, from number `first` on, of as many runs."""
    before_it = len(place.cluster.faults.seen)
    assert place.follow(place.schedule("undisturbed"))
    requests = place.cluster.faults.seen[before_it:]
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
        what = f"{asked.verb} {asked.resource}, {when}"
        print(f"killed at request {number} ({what}): same", flush=True)
        shutil.rmtree(place.volume / run_name)
    print(f"{done} kills, one Job a step each time, every final model the same")


if __name__ == "__main__":
    sys.exit(main())
