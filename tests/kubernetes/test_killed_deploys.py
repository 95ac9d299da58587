"""What a deploy leaves on a cluster that is killed while a revision is tried, and who ends it.

Nothing of the orchestrator's runs after it was killed, so it is enough to leave out what it
would have asked for next.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.cli.cluster_stop import stop_on_cluster
from infra.choose_backend import BACKEND_VARIABLE
from infra.kubernetes_backend.serving import Serving
from infra.serving_place import ServingSpec
from tests.kubernetes.conftest import CLAIM, backend_with, cluster_of_stand_ins
from tests.kubernetes.shipped import MANIFESTS, ORCHESTRATOR
from tests.kubernetes_double.cluster import Cluster

SERVER = Path(__file__).with_name("stand_in_server.py")


@pytest.fixture(params=["kserve", "standard", "deployment"])
def cluster(
    request: pytest.FixtureRequest, tmp_path: Path, volume: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Cluster]:
    has = {"kserve": request.param != "deployment", "knative": request.param == "kserve"}
    with cluster_of_stand_ins(tmp_path, manifests=MANIFESTS, **has) as running:
        running.node.entrypoint = [sys.executable, str(SERVER)]
        monkeypatch.setenv("KUBECONFIG", str(running.node.kubeconfigs[ORCHESTRATOR]))
        monkeypatch.setenv(BACKEND_VARIABLE, "kubernetes")
        yield running


@pytest.fixture
def place(cluster: Cluster, tmp_path: Path) -> Serving:
    return backend_with(tmp_path).serving("")


def revision(number: int) -> ServingSpec:
    return ServingSpec(
        run_name="town",
        volume=CLAIM,
        model=f"town/served/{number}",
        model_digest=str(number),
        revision=number,
        image="finetune-steps:0.2.0",
        gpus=0,
    )


ONE, TWO = revision(1), revision(2)


def serve(place: Serving, spec: ServingSpec) -> None:
    place.start(spec, None, print)
    place.promote(spec, print)


def servers(cluster: Cluster) -> dict[str, str]:
    """Of each server that is to continue: its model's place, and its Pod's uid."""
    going_on = [pod for pod in cluster.pods() if "deletionTimestamp" not in pod["metadata"]]
    return {_model(pod): pod["metadata"]["uid"] for pod in going_on}


def _model(pod: dict) -> str:
    (mount,) = [
        mount
        for mount in pod["spec"]["containers"][0]["volumeMounts"]
        if mount["mountPath"] == "/mnt/models"
    ]
    return mount["subPath"]


def test_the_next_deploy_of_the_same_model_takes_the_server_that_is_there(
    cluster: Cluster, place: Serving
) -> None:
    serve(place, ONE)
    place.start(TWO, ONE, print)
    left = servers(cluster)
    assert set(left) == {ONE.model, TWO.model}
    place.start(TWO, ONE, print)
    assert servers(cluster) == left
    place.promote(TWO, print)
    cluster.wait_for(lambda: servers(cluster) == {TWO.model: left[TWO.model]})


def test_the_next_deploy_of_what_serves_removes_the_server_that_was_tried(
    cluster: Cluster, place: Serving
) -> None:
    serve(place, ONE)
    place.start(TWO, ONE, print)
    place.promote(ONE, print)
    cluster.wait_for(lambda: set(servers(cluster)) == {ONE.model})


@pytest.mark.parametrize("serving", [True, False])
def test_stop_removes_the_server_that_was_tried(
    cluster: Cluster, place: Serving, serving: bool
) -> None:
    if serving:
        serve(place, ONE)
    place.start(TWO, ONE if serving else None, print)
    assert stop_on_cluster(CLAIM, "town") == ["service"]
    for kind in ("inferenceservices", "deployments", "services"):
        assert cluster.do(lambda kind=kind: cluster.store.list(kind)) == []
    cluster.wait_for(lambda: cluster.pods() == [])
    assert stop_on_cluster(CLAIM, "town") == []
