"""`prefect deployment run` as docs/cluster.md has it: pods that start pods, all the way.

Prefect's server and worker are the pods of infra/cluster, in the orchestrator's image.
"""

import dataclasses
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.cli.cluster_yaml import render_request
from tests.flows.small_volume import give_way, make_volume
from tests.flows.unfollowed import begun, what_stop_said
from tests.hub_double import HubDouble, HubModel
from tests.kubernetes.conftest import CLAIM, STAND_IN, backend_with, spec, starts
from tests.kubernetes.job_history import JobSeen, jobs_seen
from tests.kubernetes.pipeline import REQUEST
from tests.kubernetes.shipped import MANIFESTS, SERVER_CLAIM, applied
from tests.kubernetes_double.admission import violations_of_restricted
from tests.kubernetes_double.cluster import Cluster
from tests.kubernetes_double.store import Object
from tests.prefect_processes import PREFECT, prefect_environment
from trainer.contract.parameters import Parameters
from trainer.contract.run_folder import RunFolder
from trainer.contract.validation import load_parameters

ROOT = Path(__file__).parents[2]
MANY_STARTS_SECONDS = 1500.0  # processes start one after the other, on a machine that may be busy
LONG = 2000  # epochs that do not end within a test


@dataclasses.dataclass
class Site:
    """A cluster with the work pool `coreweave`, its worker, and the server that they serve."""

    cluster: Cluster
    hub: HubDouble
    volume: Path
    environment: dict[str, str]

    def prefect(self, *words: str) -> None:
        done = subprocess.run(
            [*PREFECT, *words], env=self.environment, cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def ask(self, kind: str, name: str) -> Any:
        """The one object of that kind and name on the server."""
        [found] = self.found(kind, name)
        return found

    def found(self, kind: str, name: str) -> list[Any]:
        """The objects of that kind and name."""
        request = urllib.request.Request(
            f"{self.environment['PREFECT_API_URL']}/{kind}/filter",
            json.dumps({kind: {"name": {"any_": [name]}}}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=300) as response:
            return json.load(response)

    def state(self, run_name: str) -> str:
        return self.ask("flow_runs", run_name)["state"]["name"]

    def orchestrators(self) -> list[Object]:
        label = ("app.kubernetes.io/component", "orchestrator")
        return [p for p in self.cluster.pods() if label in p["metadata"]["labels"].items()]

    def log(self, pod: Object) -> str:
        path = self.cluster.folder / "pods" / pod["metadata"]["uid"] / "log"
        return path.read_text() if path.exists() else ""

    def jobs(self, name: str) -> list[JobSeen]:
        seen = jobs_seen(self.cluster.history())
        return [job for job in seen if name in job.name]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    home, folder = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("prefect")
    volume = make_volume(home)
    volumes = {CLAIM: volume, SERVER_CLAIM: home / "server"}
    with (
        HubDouble({"org/tiny": HubModel(contents(volume / "models/tiny"))}) as hub,
        Cluster(home / "cluster", volumes, manifests=MANIFESTS) as cluster,
    ):
        cluster.node.environment = {
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
            "HF_ENDPOINT": hub.url,
            "PREFECT_RUNNER_POLL_FREQUENCY": "1",
            "PREFECT_WORKER_QUERY_SECONDS": "1",
        }
        made = Site(cluster, hub, volume, prefect_environment(folder, applied(cluster)))
        cluster.wait_for(lambda: made.found("work_pools", "coreweave"))  # made by its worker
        made.prefect("deploy", "--name", "gptj", "--name", "jobs")
        yield made


@pytest.mark.timeout(2400)
def test_a_run_of_the_deployment_survives_its_orchestrator_and_ends_when_it_is_cancelled(
    site: Site,
) -> None:
    cluster = site.cluster
    given = {**REQUEST.model_dump(exclude_unset=True), "run_name": "survivor", "epochs": LONG}
    # Nothing of the machine that it was made on, but for the folder that process workers go to.
    made = site.ask("deployments", "gptj")
    assert str(ROOT) in json.dumps(made.pop("pull_steps"))
    assert str(ROOT) not in json.dumps(made)
    asked = [word for name, value in given.items() for word in ("-p", f"{name}={value}")]
    site.prefect("deployment", "run", "finetune/gptj", *asked)

    trains = RunFolder(site.volume, "survivor").metrics.exists
    cluster.wait_for(trains, patience_seconds=MANY_STARTS_SECONDS)
    give_way(f"{cluster.folder}/")
    looked, *steps = [job.name for job in site.jobs("survivor-")]
    # A rendered Job does not know what the steps before it make: its key has no digests of that.
    rendered = rendered_names(site, "survivor")
    assert steps[0] == rendered[0]
    assert [name[:-8] for name in steps] == [name[:-8] for name in rendered]
    assert looked.startswith("survivor-plan-")  # before anything is downloaded
    [first] = site.orchestrators()
    assert_right(first, site)

    # SIGTERM to the orchestrator alone, as when its node is drained: Prefect schedules it anew.
    cluster.do(lambda: cluster.kubelet.evict(first))
    adopts = "finetune: Job survivor-finetune-"
    second = cluster.wait_for(lambda: [p for p in site.orchestrators() if is_other(p, first)])[0]
    cluster.wait_for(lambda: adopts in site.log(second), patience_seconds=MANY_STARTS_SECONDS)
    assert "already running" in site.log(second)
    assert site.state("survivor") == "Running"
    assert [(job.num_pods, job.ended) for job in site.jobs("survivor-finetune")] == [(1, "")]

    site.prefect("flow-run", "cancel", site.ask("flow_runs", "survivor")["id"])
    cluster.wait_for(lambda: site.state("survivor") == "Cancelled")
    left = [obj["metadata"]["name"] for obj in cluster.jobs() + cluster.pods()]
    assert not [name for name in left if name.startswith("survivor-finetune")]
    run = RunFolder(site.volume, "survivor")
    last_step = json.loads(run.metrics.read_text().splitlines()[-1])["step"]
    newest = max(path.parent.name for path in run.checkpoints.glob("*/manifest.json"))
    assert newest == f"step-{last_step:08}"  # it saved before it went


def test_a_run_over_its_budget_is_refused_before_its_model_is_downloaded(site: Site) -> None:
    given = {**REQUEST.model_dump(exclude_unset=True), "model": "org/tiny", "run_name": "dear"}
    given["budget"] = json.dumps({"max_hours": 1e-6})
    asked = [word for name, value in given.items() for word in ("-p", f"{name}={value}")]
    site.prefect("deployment", "run", "finetune/gptj", *asked)
    seconds = MANY_STARTS_SECONDS
    site.cluster.wait_for(lambda: site.jobs("dear-"), patience_seconds=seconds)
    ended = ("Failed", "Completed")
    site.cluster.wait_for(lambda: site.state("dear") in ended, patience_seconds=seconds)
    message = site.ask("flow_runs", "dear")["state"]["message"]
    assert "budget.max_hours is too little (got 1e-06)" in message
    [job] = site.jobs("dear-")
    assert job.name.startswith("dear-plan-")
    assert site.hub.gets("config.json") and not site.hub.gets("model.safetensors")
    assert not (site.volume / "models/org").exists()


def test_a_job_that_nothing_follows_ends_when_its_flow_run_is_cancelled(
    site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cluster, api_url = site.cluster, site.environment["PREFECT_API_URL"]
    monkeypatch.setattr(cluster.node, "entrypoint", [sys.executable, str(STAND_IN)])
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    with temporary_settings({PREFECT_API_URL: api_url}), get_client(sync_client=True) as client:
        run = begun(client, "finetune/gptj", {"run_name": "run"})
        client.update_flow_run(run.id, infrastructure_pid="gone")
        backend_with(tmp_path).submit(spec(until="never", attempt=str(run.id)))
        cluster.wait_for(lambda: starts(site.volume), patience_seconds=MANY_STARTS_SECONDS)
        site.prefect("flow-run", "cancel", str(run.id))
        told = what_stop_said(client, run.id)
        state = client.read_flow_run(run.id).state
    assert told == f"{run.name}: stopped finetune of run."
    assert not [job for job in cluster.jobs() if job["metadata"]["name"].startswith("run-")]
    assert state is not None and state.is_cancelled()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def rendered_names(site: Site, run_name: str) -> list[str]:
    """The Jobs up to training's as `finetune render` prints them for the same request."""
    asked = load_parameters(Parameters, site.ask("flow_runs", run_name)["parameters"])
    [store] = (site.volume / "tokens").iterdir()
    steps = ("fetch", "tokenize", "finetune")
    text = render_request(asked, site.volume.parent, steps, f"tokens/{store.name}")
    return [job["metadata"]["name"] for job in yaml.safe_load_all(text)]


def is_other(pod: Object, than: Object) -> bool:
    running = pod["status"]["phase"] == "Running"
    return running and pod["metadata"]["uid"] != than["metadata"]["uid"]


def assert_right(pod: Object, site: Site) -> None:
    """The orchestrator's Job is valid and safe, and finds server, backend and volume."""
    owner = pod["metadata"]["ownerReferences"][0]["name"]
    [job] = [job for job in site.cluster.jobs() if job["metadata"]["name"] == owner]
    kubernetes_validate.validate(job, "1.36", strict=True)
    pod = job["spec"]["template"]["spec"]
    assert violations_of_restricted(pod) == []
    assert pod["serviceAccountName"] == "finetune-orchestrator"
    [container] = pod["containers"]
    variables = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert variables["FINETUNE_BACKEND"] == "kubernetes"
    assert variables["PREFECT_API_URL"] == site.environment["PREFECT_API_URL"]
    assert container["image"] == "finetune-orchestrator:0.2.0"
    assert container["volumeMounts"][0]["mountPath"] == "/finetune-data"
    assert "flow-run" in " ".join(container["args"])
    assert "nvidia.com/gpu" not in json.dumps(job)
