"""The real steps as Jobs: disturbed as a cluster disturbs them, the model is the same one."""

import contextlib
import itertools
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.kubernetes_backend.jobs import KubernetesBackend
from infra.local.processes import LocalBackend
from tasks import configs
from tests.flows.small_volume import PVC, make_volume
from tests.kubernetes.job_history import jobs_seen
from tests.kubernetes.orchestrators import Orchestrators
from tests.kubernetes.pipeline import REQUEST, STEPS, run_steps, spec_of
from tests.kubernetes.shipped import MANIFESTS, ORCHESTRATOR
from tests.kubernetes_double.cluster import Cluster
from trainer.contract.cluster_settings import ClusterSettings
from trainer.contract.errors import EXIT_REFUSED
from trainer.contract.events import Event
from trainer.contract.outcome import Outcome
from trainer.contract.run_folder import RunFolder
from trainer.report.times import ledger

AWAY = "the cluster does not answer"
WAIT_SECONDS = 2.0
CLOCKS_DIFFER = 1.0  # the kernel tells a process' start by a clock of its own
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}


class Lines:
    """A watcher that keeps what is said, and has things happen, in turn, at steps of training."""

    def __init__(self, at_step: dict[int, Any]) -> None:
        self.lines: list[str] = []
        self.where: list[str] = []
        self.trained: list[int] = []
        self._at_step = at_step
        self._happening = threading.Thread()

    def started(self, step: str, where: str) -> None:
        self.where.append(where)

    def line(self, step: str, text: str) -> None:
        self.lines.append(text)

    def event(self, step: str, event: Event) -> None:
        if event.kind == "notice":
            self.lines.append(event.fields["message"])
        if event.kind == "progress" and event.fields.get("unit") == "steps":
            self.trained.append(event.fields["done"])
            due = [at for at in sorted(self._at_step) if event.fields["done"] >= at]
            if due and not self._happening.is_alive():
                self._happening = threading.Thread(target=self._at_step.pop(due[0]))
                self._happening.start()

    def ended(self, step: str, outcome: Outcome) -> None:
        self.lines.append(f"{step} ended: {outcome.status}")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The volume of the same run as local processes."""
    home = tmp_path_factory.mktemp("local")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        run_steps(LocalBackend(make_volume(home).parent), [])
    yield home / PVC


@contextlib.contextmanager
def real_cluster(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A cluster as infra/cluster sets it up, that runs the real trainer."""
    with Cluster(home / "cluster", {PVC: home / PVC}, manifests=MANIFESTS) as cluster:
        cluster.node.environment = ENVIRONMENT
        monkeypatch.setenv("KUBECONFIG", str(cluster.node.kubeconfigs[ORCHESTRATOR]))
        yield cluster


def losses(volume: Path) -> list[float]:
    lines = map(json.loads, (volume / "run/metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def assert_same_model(volume: Path, undisturbed: Path) -> None:
    assert losses(volume) == losses(undisturbed)
    paths = sorted((undisturbed / "run/final").glob("*.safetensors"))
    assert paths
    for path in paths:
        assert (volume / "run/final" / path.name).read_bytes() == path.read_bytes()


def test_evicted_twice_and_the_api_away_the_final_model_is_the_same_bit_for_bit(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = make_volume(tmp_path)
    with real_cluster(tmp_path, monkeypatch) as cluster:
        backend = KubernetesBackend(ClusterSettings(), look_seconds=0.3, volumes=tmp_path)

        def evict() -> None:
            pod = cluster.running_pod()
            cluster.do(lambda: cluster.kubelet.evict(pod))
            uid = pod["metadata"]["uid"]
            cluster.wait_for(lambda: cluster.running_pod()["metadata"]["uid"] != uid)

        def away() -> None:
            cluster.faults.down = True
            try:
                cluster.do(cluster.faults.cut_streams)
                cluster.wait_for(lambda: any(AWAY in line for line in watcher.lines))
            finally:
                cluster.faults.down = False

        watcher = Lines({12: evict, 30: evict, 60: away})
        outcomes = run_steps(backend, [watcher])
        jobs = jobs_seen(cluster.history())

    assert [outcome.status for outcome in outcomes.values()] == ["done"] * 3
    assert [(job.name.split("-")[1], job.num_pods) for job in jobs] == list(
        zip(STEPS, (1, 1, 3), strict=True)
    )
    assert sum("resumes from step" in line for line in watcher.lines) == 2
    assert "the cluster answers again" in watcher.lines
    assert_same_model(volume, undisturbed)


def test_waiting_for_a_machine_and_for_its_image_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path / PVC, "run")
    run.root.mkdir(parents=True)
    run.record_path.write_text(json.dumps({"created": "now", "request": REQUEST.request}))
    with real_cluster(tmp_path, monkeypatch) as cluster:
        cluster.node.pull_seconds = WAIT_SECONDS
        right = dict(cluster.node.labels)
        cluster.node.labels.clear()  # no node suits
        backend = KubernetesBackend(ClusterSettings(), look_seconds=0.3, volumes=tmp_path)
        config = configs.fetch_config(REQUEST.model_dump(), REQUEST.request)
        spec = spec_of("fetch", {**config, "asked": time.time()})
        threading.Timer(WAIT_SECONDS, lambda: cluster.node.labels.update(right)).start()
        backend.submit(spec)
        # There is no text on this volume: how a step ends makes no difference.
        assert backend.wait(spec, print).exit_code == EXIT_REFUSED
        took = time.time() - spec.config["asked"]
    parts = ledger(run)
    assert parts["queue"] > WAIT_SECONDS - 0.1
    assert parts["image"] > WAIT_SECONDS - CLOCKS_DIFFER
    assert sum(parts.values()) < took


def test_orchestrators_killed_at_their_first_request_their_second_and_so_on_share_the_work(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = make_volume(tmp_path)
    module = "tests.kubernetes.pipeline"
    with (
        real_cluster(tmp_path, monkeypatch) as cluster,
        Orchestrators(cluster, tmp_path, module) as orchestrators,
    ):
        for number in itertools.count(1):
            killed = {"kill_at": number, "before": number % 2 == 1}
            ended = orchestrators.call("orchestrate", **killed, volumes=str(tmp_path))
            if ended is not None:
                break
        jobs = jobs_seen(cluster.history())

    assert number > 10
    assert ended == dict.fromkeys(STEPS, "done")
    assert [(job.name.split("-")[1], job.num_pods) for job in jobs] == [(s, 1) for s in STEPS]
    assert_same_model(volume, undisturbed)
