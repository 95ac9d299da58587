"""KServe without Knative: its own canary, held to KServe's schema and to its webhook's rules."""

import copy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.backend import PlaceError
from infra.kubernetes_backend import manifests_standard as standard
from infra.kubernetes_backend.serving import Serving
from infra.serving_place import LONGEST_NAME, ServingSpec
from tests.kubernetes.conftest import backend_with, cluster_of_stand_ins
from tests.kubernetes.test_killed_deploys import ONE, SERVER, TWO, revision, serve, servers
from tests.kubernetes.test_manifests import EVERYTHING
from tests.kubernetes.test_serving_manifests import SPEC
from tests.kubernetes_double import kserve_schema
from tests.kubernetes_double.admission import violations_of_restricted
from tests.kubernetes_double.cluster import Cluster
from trainer.contract.cluster_settings import ClusterSettings

THREE = revision(3)


@pytest.fixture
def cluster(tmp_path: Path, volume: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    with cluster_of_stand_ins(tmp_path, knative=False) as running:
        running.node.entrypoint = [sys.executable, str(SERVER)]
        monkeypatch.setenv("KUBECONFIG", str(running.kubeconfig))
        yield running


@pytest.fixture
def place(cluster: Cluster, tmp_path: Path) -> Serving:
    return backend_with(tmp_path).serving("")


def service_of(cluster: Cluster) -> dict[str, Any]:
    [found] = cluster.do(lambda: cluster.store.list("inferenceservices"))
    return found


def tried(settings: ClusterSettings) -> dict[str, Any]:
    stable = standard.standard_predictor(SPEC, settings, "a", canary=False)
    canary = standard.standard_predictor(SPEC, settings, "b", canary=True)
    return standard.standard_service(SPEC, settings, stable, canary)


@pytest.mark.parametrize("settings", [ClusterSettings(), EVERYTHING])
def test_what_is_applied_suits_kserves_schema_and_its_webhook(settings: ClusterSettings) -> None:
    made = tried(settings)
    assert kserve_schema.problems(made) == []
    assert violations_of_restricted(made["spec"]["predictor"]) == []
    # The double refuses what KServe refuses.
    wrong = copy.deepcopy(made)
    wrong["spec"]["canary"][0]["predictor"]["maxReplicas"] = 1
    assert "maxReplicas" in kserve_schema.problems(wrong)[0]
    wrong = copy.deepcopy(made)
    wrong["spec"]["canary"][0]["predictor"]["name"] = "a"
    assert "taken" in kserve_schema.problems(wrong)[0]
    wrong = copy.deepcopy(made)
    wrong["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] = "Serverless"
    assert "only supported in Standard" in kserve_schema.problems(wrong)[0]
    wrong = copy.deepcopy(made)
    wrong["spec"]["canary"][0]["traffic"] = 0
    assert kserve_schema.problems(wrong)


def test_a_revision_is_tried_without_clients_and_promoted_without_a_restart(
    cluster: Cluster, place: Serving
) -> None:
    serve(place, ONE)
    address = service_of(cluster)["status"]["url"]
    candidate = place.start(TWO, ONE, print)
    assert candidate == "http://inference-town-b-predictor.default.svc"
    spec = service_of(cluster)["spec"]
    assert [canary["trafficPercent"] for canary in spec["canary"]] == [0]
    assert place.serving(ONE) == ONE
    there = servers(cluster)
    assert place.promote(TWO, print) == address
    assert "canary" not in service_of(cluster)["spec"]
    assert place.serving(TWO) == TWO
    cluster.wait_for(lambda: servers(cluster) == {TWO.model: there[TWO.model]})
    # The letters take turns.
    assert place.start(THREE, TWO, print) == "http://inference-town-a-predictor.default.svc"
    assert place.promote(THREE, print) == address
    cluster.wait_for(lambda: set(servers(cluster)) == {THREE.model})


def test_a_revision_that_did_not_pass_goes_and_what_serves_is_left_alone(
    cluster: Cluster, place: Serving
) -> None:
    serve(place, ONE)
    there = servers(cluster)
    place.start(TWO, ONE, print)
    place.withdraw(TWO, ONE, print)
    cluster.wait_for(lambda: servers(cluster) == there)
    assert place.serving(ONE) == ONE
    # The same letter again, with another model: its own servers are asked.
    place.start(THREE, ONE, print)
    assert set(servers(cluster)) == {ONE.model, THREE.model}


def test_what_was_promoted_by_a_deploy_that_was_killed_can_be_withdrawn(
    cluster: Cluster, place: Serving
) -> None:
    serve(place, ONE)
    place.start(TWO, ONE, print)
    place.promote(TWO, print)
    place.withdraw(TWO, ONE, print)
    cluster.wait_for(lambda: set(servers(cluster)) == {ONE.model})
    assert place.serving(ONE) == ONE


def test_a_headless_service_is_asked_at_the_servers_own_port(
    cluster: Cluster, place: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(place, ONE)
    [made] = cluster.do(lambda: cluster.store.list("services"))
    made["spec"]["clusterIP"] = "None"

    async def headless(self: Any, name: str) -> dict[str, Any]:
        return made

    monkeypatch.setattr("infra.kubernetes_backend.connection.Connection.read_service", headless)
    assert place.start(TWO, ONE, print).endswith("-predictor.default.svc:8080")


def test_a_kserve_that_has_no_canary_is_named(
    cluster: Cluster, place: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(place, ONE)
    known = kserve_schema.problems

    def of_an_earlier_kserve(made: dict[str, Any]) -> list[str]:
        return ['unknown field "spec.canary"'] if "canary" in made["spec"] else known(made)

    monkeypatch.setattr(kserve_schema, "problems", of_an_earlier_kserve)
    with pytest.raises(PlaceError, match=r"KServe 0\.20 and later can.*serving\.kind=deployment"):
        place.start(TWO, ONE, print)
    assert set(servers(cluster)) == {ONE.model}


def test_short_runs_keep_their_name_and_long_ones_differ() -> None:
    assert ServingSpec.name_of("town") == "inference-town"
    assert ServingSpec.name_of("r" * 36) == "inference-" + "r" * 36
    names = {ServingSpec.name_of("r" * 39 + letter) for letter in "abc"}
    assert len(names) == 3


@given(st.from_regex(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?", fullmatch=True))
def test_kserves_names_of_a_service_fit_labels_and_host_names(run_name: str) -> None:
    name = ServingSpec.name_of(run_name)
    made = (
        f"latest-{name}-predictor",  # the host of Knative's tag
        f"isvc.{standard.deployment_name(name, 'b')}",  # a label of Standard mode
        f"{name}-99999",  # a revision's Deployment without KServe
        f"{name}-predictor-99999",  # Knative's revision, which it cuts by itself if need be
    )
    assert all(len(part) <= 63 for part in made)
    assert len(name) <= LONGEST_NAME and name[-1].isalnum()
