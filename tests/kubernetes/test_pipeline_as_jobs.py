"""The real steps as Jobs: disturbed as a cluster disturbs them, the model is the same one."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.parameters import Parameters
from infra.backend import Backend, Resources, StepSpec, work_key
from infra.kubernetes_backend.jobs import KubernetesBackend
from infra.local_processes import LocalBackend
from infra.manifests_settings import ClusterSettings
from tasks import configs
from tasks.following import follow_step
from tests.flows.small_volume import PVC, make_volume
from tests.kubernetes_double.cluster import Cluster
from trainer.events import Event
from trainer.outcome import Outcome

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
REQUEST = Parameters(
    run_name="run",
    model="models/tiny",
    context=64,
    batch_size=4,
    gradients=1,
    epochs=8,
    save_steps=10,
    learn_rate=1e-3,
    prompt_tokens=4,
    prompt_samples=1,
)


class Lines:
    """A watcher that keeps what is said, and has something happen at a step of training."""

    def __init__(self, at_step: dict[int, Any]) -> None:
        self.lines: list[str] = []
        self.where: list[str] = []
        self.trained: list[int] = []
        self._at_step = at_step

    def started(self, step: str, where: str) -> None:
        self.where.append(where)

    def line(self, step: str, text: str) -> None:
        self.lines.append(text)

    def event(self, step: str, event: Event) -> None:
        if event.kind == "progress" and event.fields.get("unit") == "steps":
            self.trained.append(event.fields["done"])
            for at in [at for at in self._at_step if event.fields["done"] >= at]:
                threading.Thread(target=self._at_step.pop(at)).start()

    def ended(self, step: str, outcome: Outcome) -> None:
        self.lines.append(f"{step} ended: {outcome.status}")


def spec(step: str, config: dict[str, Any]) -> StepSpec:
    return StepSpec(
        step=step,
        run_name="run",
        volume=PVC,
        config=config,
        key=work_key(config, without=configs.NOT_DEFINING),
        attempt="flow-run-1",
        resources=Resources(gpu="A40", gpus=1) if step == "finetune" else Resources(),
        image="finetune-steps:0.1.0",
        region="ORD1",
    )


def run_steps(backend: Backend, watcher: Lines) -> dict[str, Outcome]:
    """fetch, tokenize and finetune, as the flow does them."""
    values, outcomes = REQUEST.model_dump(), {}

    def follow(step: str, config: dict[str, Any]) -> dict[str, Any]:
        outcomes[step] = follow_step(backend, spec(step, config), [watcher])
        return outcomes[step].result

    fetched = follow("fetch", configs.fetch_config(values, REQUEST.request))
    folders = {"model": fetched["model"], "tokenizer": fetched["tokenizer"]}
    tokens = follow("tokenize", configs.tokenize_config(values, **folders))["store"]
    asked = {"attempt": "flow-run-1", "earlier_outcomes": []}
    follow(
        "finetune",
        configs.finetune_config(values, REQUEST.request, **folders, tokens=tokens, **asked),
    )
    return outcomes


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The volume of the same run as local processes."""
    home = tmp_path_factory.mktemp("local")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        run_steps(LocalBackend(make_volume(home).parent), Lines({}))
    yield home / PVC


def losses(volume: Path) -> list[float]:
    lines = map(json.loads, (volume / "run/metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


def test_evicted_twice_and_the_api_away_the_final_model_is_the_same_bit_for_bit(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = make_volume(tmp_path)
    with Cluster(tmp_path / "cluster", {PVC: volume}) as cluster:
        cluster.node.environment = ENVIRONMENT
        monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
        backend = KubernetesBackend(ClusterSettings(), look_seconds=0.3, volumes=tmp_path)

        def evict() -> None:
            pod = cluster.running_pod()
            cluster.do(lambda: cluster.kubelet.evict(pod))

        def away() -> None:
            cluster.faults.down = True
            cluster.do(cluster.faults.cut_streams)
            time.sleep(3)
            cluster.faults.down = False

        watcher = Lines({12: evict, 30: evict, 60: away})
        outcomes = run_steps(backend, watcher)
        jobs = [job["metadata"]["name"].split("-")[1] for job in cluster.jobs()]
        pods = [pod["metadata"]["name"].split("-")[1] for pod in cluster.pods()]
        made = sum(what == "ADDED" and kind == "pods" for _, what, kind, _ in cluster.history())

    assert jobs == ["fetch", "tokenize", "finetune"]
    assert sorted(pods) == sorted(jobs)
    assert made == len(jobs) + 2
    assert [outcome.status for outcome in outcomes.values()] == ["done"] * 3
    assert sum("goes on from step" in line for line in watcher.lines) == 2
    assert "the cluster answers again" in watcher.lines
    assert losses(volume) == losses(undisturbed)
    for path in sorted((undisturbed / "run/final").glob("*.safetensors")):
        assert (volume / "run/final" / path.name).read_bytes() == path.read_bytes()
