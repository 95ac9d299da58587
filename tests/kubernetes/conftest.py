"""A cluster for each test whose steps are stand-ins, and what tests ask of it."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.backend import Resources, StepSpec
from infra.kubernetes_backend.jobs import KubernetesBackend
from tests.kubernetes_double.cluster import Cluster
from trainer.contract.cluster_settings import ClusterSettings

CLAIM = "finetune-data"
STAND_IN = Path(__file__).with_name("stand_in_trainer.py")
LOOK_SECONDS = 0.1


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    folder = tmp_path / CLAIM
    folder.mkdir()
    return folder


def cluster_of_stand_ins(folder: Path, **options: Any) -> Cluster:
    """A cluster, not yet started, that runs the stand-in trainer."""
    made = Cluster(folder / "cluster", {CLAIM: folder / CLAIM}, **options)
    made.node.entrypoint = [sys.executable, str(STAND_IN)]
    return made


@pytest.fixture
def cluster(tmp_path: Path, volume: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    with cluster_of_stand_ins(tmp_path) as running:
        monkeypatch.setenv("KUBECONFIG", str(running.kubeconfig))
        yield running


@pytest.fixture
def backend(cluster: Cluster, tmp_path: Path) -> KubernetesBackend:
    return backend_with(tmp_path)


def backend_with(tmp_path: Path, **settings: Any) -> KubernetesBackend:
    """An orchestrator's backend, with the volume mounted as the orchestrator's pod has it."""
    return KubernetesBackend(
        ClusterSettings(**settings), look_seconds=LOOK_SECONDS, volumes=tmp_path
    )


def spec(key: str = "0123456789abcdef", *, attempt: str = "", **config: Any) -> StepSpec:
    return StepSpec(
        step="finetune",
        run_name="run",
        volume=CLAIM,
        config=config,
        key=key,
        attempt=attempt,
        resources=Resources(gpu="A40", gpus=1, cores=8, memory_gib=32),
        image="finetune-steps:0.2.0",
        region="US-EAST-01",
    )


def follow(backend: KubernetesBackend, step: StepSpec) -> tuple[Any, list[str]]:
    """Submit and wait: how it ended, and its lines."""
    backend.submit(step)
    lines: list[str] = []
    return backend.wait(step, lines.append), lines


def starts(volume: Path) -> int:
    """How often the step was started."""
    path = volume / "starts"
    return len(path.read_text().split()) if path.exists() else 0
