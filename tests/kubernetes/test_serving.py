"""A run's service on the cluster: real servers, tried before clients are sent to them.

The tests go in the order of the file: later ones find what the first has left served.
"""

import contextlib
import json
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner

from flows.cli.cluster_stop import stop_on_cluster
from flows.cli.main import cli
from infra.choose_backend import BACKEND_VARIABLE
from infra.kubernetes_backend.jobs import KubernetesBackend
from infra.local.service_client import Address, NoAnswerError, ask
from tasks.cluster_deployment import deploy_on_cluster
from tasks.following import follow_step
from tasks.specs import step_spec
from tests.kubernetes.shipped import MANIFESTS, ORCHESTRATOR
from tests.kubernetes_double import standard_serving
from tests.kubernetes_double.api_objects import container_state
from tests.kubernetes_double.cluster import Cluster
from tests.kubernetes_double.deletion import delete_pod
from tests.serving import trained
from trainer.contract.cluster_settings import ClusterSettings
from trainer.contract.errors import StepError
from trainer.contract.outcome import Outcome
from trainer.contract.parameters import Parameters
from trainer.contract.run_folder import RunFolder
from trainer.serving.deploy.gate import expected_of, observe, problems

PVC = "finetune-data"
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}


@pytest.fixture(scope="module")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume for the run `town`."""
    volume = tmp_path_factory.mktemp("serving") / PVC
    volume.mkdir()
    return volume


@pytest.fixture(scope="module", params=["kserve", "standard", "deployment"])
def cluster(
    request: pytest.FixtureRequest, volume: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """A guarded cluster with KServe on Knative, one with KServe alone, and one without."""
    folder = tmp_path_factory.mktemp("cluster")
    shutil.rmtree(volume / "town", ignore_errors=True)
    with Cluster(
        folder,
        {PVC: volume},
        kserve=request.param != "deployment",
        knative=request.param == "kserve",
        manifests=MANIFESTS,
    ) as running:
        running.node.environment = ENVIRONMENT
        running.node.labels["gpu.nvidia.com/class"] = "RTX_A5000"
        yield running


@pytest.fixture(autouse=True)
def rights(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The orchestrator's own, and no more."""
    monkeypatch.setenv("KUBECONFIG", str(cluster.node.kubeconfigs[ORCHESTRATOR]))
    monkeypatch.setenv(BACKEND_VARIABLE, "kubernetes")


@pytest.fixture
def deploy(cluster: Cluster) -> Callable[..., Outcome]:
    """Deploys the run as the flow does."""
    backend = KubernetesBackend(ClusterSettings(), look_seconds=0.2)

    def deploy(said: list[str] | None = None, **given: Any) -> Outcome:
        values = Parameters(run_name="town", inference_only=True, **given).model_dump()
        attempt = uuid.uuid4().hex
        return deploy_on_cluster(
            values,
            backend.serving(values["serving"]["kind"]),
            lambda config: follow_step(
                backend, step_spec(values, "deploy", config, attempt=attempt), []
            ),
            (said if said is not None else []).append,
        )

    return deploy


def reachable(cluster: Cluster, url: str) -> Address:
    """An address of the cluster as this machine reaches it, once its name is known there."""
    name, hosts = urlsplit(url).netloc, cluster.node.hosts
    if name.endswith(".svc"):
        cluster.wait_for(lambda: name in hosts)
        url = url.replace(name, hosts[name])
    return Address(url)


def history(volume: Path) -> list[tuple[str, int]]:
    lines = (volume / "town/services.jsonl").read_text().splitlines()
    return [(entry["event"], entry["revision"]) for entry in map(json.loads, lines)]


class Asker:
    """A client that asks the service over and over; every answer must come."""

    def __init__(self, address: Address) -> None:
        self._address, self.answers, self.errors = address, [], []  # type: ignore[var-annotated]
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> "Asker":
        self._thread.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._enough.set()
        self._thread.join()

    def await_answer(self, text: str) -> None:
        """Return once the service has answered so."""
        while text not in self.answers and not self.errors:
            time.sleep(0.05)

    def _ask(self) -> None:
        while not self._enough.wait(0.05):
            try:
                self.answers.append(answer_of(self._address))
            except Exception as error:  # noqa: BLE001 - whatever it is, it was a lost request
                self.errors.append(repr(error))


def start_over(volume: Path, attempt: str) -> RunFolder:
    """As `no_resume=true` does: the model that is there is put aside."""
    run = RunFolder(volume, "town")
    run.start_over(attempt)
    run.admit({}, attempt, {}, [])
    return run


def train(volume: Path, seed: int) -> Path:
    """Start over, and leave another model."""
    return trained.save(start_over(volume, f"seed {seed}").final, seed=seed)


def answer_of(address: Address) -> str:
    return ask(address, "Dust", max_tokens=8, temperature=0)


def test_a_model_is_served_and_another_takes_over_without_a_gap(
    cluster: Cluster, volume: Path, deploy: Callable[..., Outcome]
) -> None:
    said: list[str] = []
    train(volume, seed=0)
    address = reachable(cluster, deploy(said=said).result["url"])
    assert any("waiting: " in line for line in said)
    before = answer_of(address)
    train(volume, seed=1)
    with Asker(address) as asker:
        asker.await_answer(before)
        deploy()
        after = answer_of(address)
        asker.await_answer(after)
    assert asker.errors == []
    assert set(asker.answers) == {before, after}
    assert history(volume) == [("served", 1), ("served", 2)]
    assert deploy().reused
    assert history(volume) == [("served", 1), ("served", 2)]


def address_of(cluster: Cluster) -> Address:
    """Where the run's service answers, of whatever kind it is."""
    for found in cluster.do(lambda: cluster.store.list("inferenceservices")):
        return Address(found["status"]["url"])
    (host,) = [name for name in cluster.node.hosts if name.startswith("inference-town.")]
    return reachable(cluster, f"http://{host}")


def servers(cluster: Cluster) -> list[dict[str, Any]]:
    return [pod for pod in cluster.pods() if pod["spec"]["containers"][0].get("ports")]


def answer_of_a_new_server(cluster: Cluster, address: Address) -> str:
    """Delete the server's Pod, and ask the one that is made in its place."""
    (pod,) = cluster.wait_for(lambda: len(found := servers(cluster)) == 1 and found)
    cluster.do(lambda: delete_pod(cluster.store, pod, None))
    uid = pod["metadata"]["uid"]
    cluster.wait_for(lambda: all(p["metadata"]["uid"] != uid for p in servers(cluster)))
    while True:
        assert not any("terminated" in container_state(pod) for pod in servers(cluster))
        with contextlib.suppress(NoAnswerError):
            return answer_of(address)
        time.sleep(0.1)


def test_a_server_that_starts_again_serves_its_own_model_whatever_the_run_does(
    cluster: Cluster, volume: Path, deploy: Callable[..., Outcome]
) -> None:
    address = reachable(cluster, deploy().result["url"])
    before = answer_of(address)
    start_over(volume, "trains")
    assert answer_of_a_new_server(cluster, address) == before
    train(volume, seed=3)  # has passed no check
    assert answer_of_a_new_server(cluster, address) == before


def test_a_service_without_servers_answers_with_its_own_model_whatever_the_run_does(
    cluster: Cluster, volume: Path, tmp_path: Path
) -> None:
    """The first request starts a server, and is held until it is there."""
    found = cluster.do(lambda: cluster.store.list("inferenceservices"))
    if not found or standard_serving.is_standard(found[0]):
        pytest.skip("a Deployment has always a server")
    cluster.node.minute_seconds = 0.01
    cluster.wait_for(lambda: servers(cluster) == [])
    cluster.node.minute_seconds = 60
    start_over(volume, "trains again")
    assert not (volume / "town/final").exists()
    same = expected_of(trained.save(tmp_path / "final", seed=1))
    assert problems(same, observe(address_of(cluster).url, "final", same)) == []
    assert len(servers(cluster)) == 1


def test_a_model_that_fails_its_check_gets_no_client(
    cluster: Cluster, volume: Path, deploy: Callable[..., Outcome]
) -> None:
    golden = train(volume, seed=2) / "golden.json"
    wrong = json.loads(golden.read_text())
    wrong["prompts"][0]["next_log_prob"] -= 1
    golden.write_text(json.dumps(wrong))
    address = address_of(cluster)
    before = answer_of(address)
    with Asker(address) as asker:
        with pytest.raises(StepError, match=r"(?s)expected log-probability.*Revision 2 serves on"):
            deploy()
        assert answer_of(address) == before
        asker.await_answer(before)
    assert asker.errors == []
    assert set(asker.answers) == {before}
    assert history(volume) == [("served", 1), ("served", 2)]
    assert answer_of_a_new_server(cluster, address) == before


def test_the_model_before_is_rolled_back_to_and_the_service_stops(
    cluster: Cluster, volume: Path
) -> None:
    address = address_of(cluster)
    before = answer_of(address)
    with Asker(address) as asker:
        done = CliRunner().invoke(cli, ["rollback", "town", "--backend", "kubernetes"])
    assert done.exit_code == 0, done.output
    first = json.loads((volume / "town/services.jsonl").read_text().splitlines()[0])
    said = f"town: {first['model']} serves at http://"
    assert done.output.splitlines()[-1].startswith(said)
    assert asker.errors == []
    assert answer_of(address) != before
    assert history(volume) == [("served", 1), ("served", 2), ("rolled back", 3)]
    assert stop_on_cluster(PVC, "town") == ["service"]
    for kind in ("inferenceservices", "deployments", "services"):
        assert cluster.do(lambda kind=kind: cluster.store.list(kind)) == []
    assert stop_on_cluster(PVC, "town") == []
