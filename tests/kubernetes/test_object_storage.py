"""A dataset in object storage: a step on the cluster reads it with the credentials of a Secret."""

import base64
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from infra.kubernetes_backend.jobs import KubernetesBackend
from infra.local.processes import LocalBackend
from tasks import configs
from tasks.following import follow_step
from tasks.specs import step_spec
from tests.flows.small_volume import PVC, make_volume
from tests.kubernetes.conftest import LOOK_SECONDS
from tests.kubernetes_double.cluster import Cluster
from tests.object_store import s3_server
from trainer.contract.cluster_settings import ClusterSettings
from trainer.contract.events import Event
from trainer.contract.outcome import Outcome
from trainer.contract.parameters import Parameters

KEYS = {"AWS_ACCESS_KEY_ID": "of-the-secret", "AWS_SECRET_ACCESS_KEY": "hidden"}


@pytest.fixture
def object_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A real S3 server on loopback; nothing of it in this process' environment."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    with s3_server() as url:
        yield url


def upload(folder: Path, url: str) -> None:
    secrets = {"aws_access_key_id": "a", "aws_secret_access_key": "b"}
    client = boto3.client("s3", endpoint_url=url, region_name="us-east-1", **secrets)
    client.create_bucket(Bucket="texts")
    for path in (p for p in folder.rglob("*.txt")):
        client.upload_file(str(path), "texts", f"west/{path.relative_to(folder)}")


class Lines:
    """A watcher that keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def started(self, step: str, where: str) -> None:
        pass

    def line(self, step: str, text: str) -> None:
        self.lines.append(text)

    def event(self, step: str, event: Event) -> None:
        if event.kind == "notice":
            self.lines.append(event.fields["message"])

    def ended(self, step: str, outcome: Outcome) -> None:
        pass


def tokenized(backend: Any, volume: Path, watcher: Lines, **given: Any) -> bytes:
    """The tokens that the tokenize step makes of a dataset."""
    parameters = Parameters(run_name="run", model="models/tiny", context=64, **given).model_dump()
    config = configs.tokenize_config(parameters, model="models/tiny", tokenizer="")
    outcome = follow_step(backend, step_spec(parameters, "tokenize", config), [watcher])
    return (volume / outcome.result["store"] / "tokens.bin").read_bytes()


def test_a_bucket_with_an_endpoint_and_a_secret_gives_what_a_folder_gives(
    object_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = make_volume(tmp_path)
    upload(volume / "dataset", object_store)
    secret = {name: base64.b64encode(value.encode()).decode() for name, value in KEYS.items()}
    settings = {
        "secrets": ["object-store"],
        "environment": {"AWS_ENDPOINT_URL": object_store, "AWS_DEFAULT_REGION": "us-east-1"},
    }
    with Cluster(tmp_path / "cluster", {PVC: volume}) as cluster:
        monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
        backend = KubernetesBackend(ClusterSettings(**settings), look_seconds=LOOK_SECONDS)
        watcher, made = Lines(), []
        step = threading.Thread(
            target=lambda: made.append(
                tokenized(backend, volume, watcher, dataset="s3://texts/west")
            )
        )
        step.start()
        cluster.wait_for(
            lambda: any('secret "object-store" not found' in line for line in watcher.lines)
        )
        cluster.create("secrets", {"metadata": {"name": "object-store"}, "data": secret})
        step.join()
        [job] = cluster.jobs()
    assert made == [tokenized(LocalBackend(tmp_path), volume, Lines(), dataset="dataset")]
    assert "hidden" not in str(job)


def test_the_steps_of_a_run_list_a_bucket_once(
    object_store: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    upload(make_volume(tmp_path) / "dataset", object_store)
    more = {"AWS_ENDPOINT_URL": object_store, "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in {**KEYS, **more}.items():
        monkeypatch.setenv(name, value)
    asked = Parameters(run_name="run", model="models/tiny", context=64, dataset="s3://texts/west")
    parameters = asked.model_dump()
    look = configs.fetch_config(parameters, asked.request, listing="run")
    tokenize = configs.tokenize_config(parameters, model="models/tiny", tokenizer="", listing="run")
    with caplog.at_level("INFO", logger="werkzeug"):
        for step, config in (("plan", look), ("fetch", look), ("tokenize", tokenize)):
            follow_step(LocalBackend(tmp_path), step_spec(parameters, step, config), [Lines()])
    requests = [record.getMessage() for record in caplog.records]
    listings = [line for line in requests if "list-type=2" in line and "max-keys=1" not in line]
    assert len(listings) == 1, requests
