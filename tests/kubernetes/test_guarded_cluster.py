"""A namespace as infra/cluster makes it takes every object of ours, and refuses worse ones."""

import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.backend import PlaceError
from infra.kubernetes_backend import manifests_job as manifests
from tests.kubernetes.conftest import CLAIM, backend_with, cluster_of_stand_ins, follow, spec
from tests.kubernetes.job_history import jobs_seen
from tests.kubernetes.shipped import MANIFESTS, ORCHESTRATOR, WORKER
from tests.kubernetes.test_double_and_recordings import ask
from tests.kubernetes_double.cluster import Cluster
from trainer.contract.cluster_settings import ClusterSettings


@pytest.fixture
def guarded(tmp_path: Path, volume: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    with cluster_of_stand_ins(tmp_path, manifests=MANIFESTS) as running:
        monkeypatch.setenv("KUBECONFIG", str(running.node.kubeconfigs[ORCHESTRATOR]))
        yield running


def a_job(**changed: Any) -> dict[str, Any]:
    return copy.deepcopy(manifests.objects(spec(), ClusterSettings())[0]) | changed


def test_a_step_runs_under_the_shipped_rights_alone(guarded: Cluster, tmp_path: Path) -> None:
    end, lines = follow(backend_with(tmp_path), spec())
    assert end.outcome["status"] == "done"
    assert lines == ["last line of start 1"]


def test_a_step_on_two_nodes_with_every_setting_is_taken(guarded: Cluster, tmp_path: Path) -> None:
    for secret in ("hub", "object-store"):
        guarded.create("secrets", {"metadata": {"name": secret}, "data": {}})
    backend = backend_with(
        tmp_path,
        service_account="finetune-step",
        image_pull_secrets=["registry"],
        secrets=["hub", "object-store"],
        environment={"LOG_LEVEL": "debug"},
        node_selector={"disk": "fast"},
        tolerations=[{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
        priority_class="training",
        device_resources={"rdma/ib": 1},
        deadline_seconds=3600,
    )
    wide = dataclasses.replace(spec().resources, nodes=2)
    end, _ = follow(backend, dataclasses.replace(spec(), resources=wide))
    assert end.outcome["status"] == "done"
    [job] = jobs_seen(guarded.history())
    assert job.num_pods == 2
    [service] = guarded.do(lambda: guarded.store.list("services"))
    assert service["metadata"]["ownerReferences"][0]["uid"] == job.uid


@pytest.mark.parametrize(
    ("field", "value"),
    [("seccompProfile", {"type": "Unconfined"}), ("runAsNonRoot", False), ("runAsUser", 0)],
)
def test_a_pod_that_is_less_secure_is_never_made(
    guarded: Cluster, tmp_path: Path, field: str, value: Any
) -> None:
    job = a_job()
    job["spec"]["template"]["spec"]["securityContext"][field] = value
    ask(guarded, "create_namespaced_job", body=job)
    words = 'violates PodSecurity "restricted:latest"'
    guarded.wait_for(
        lambda: any(words in e["message"] for e in guarded.do(lambda: guarded.store.list("events")))
    )
    assert guarded.pods() == []


def test_an_unknown_field_is_refused_without_being_asked_to(guarded: Cluster) -> None:
    answer = ask(guarded, "create_namespaced_job", body=a_job(nosuchfield=1))
    assert (answer["code"], answer["reason"]) == (400, "BadRequest")
    assert 'unknown field "nosuchfield"' in answer["message"]


def test_each_account_has_its_own_rights_and_no_more(
    guarded: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(guarded.node.kubeconfigs["finetune-step"]))
    with pytest.raises(PlaceError, match="your account may not get jobs"):
        backend_with(tmp_path).submit(spec())
    guarded.kubeconfig = guarded.node.kubeconfigs[WORKER]
    assert ask(guarded, "create_namespaced_service", "CoreV1Api", body={})["code"] == 403


def test_who_deletes_the_claim_is_not_the_orchestrator(guarded: Cluster) -> None:
    guarded.kubeconfig = guarded.node.kubeconfigs[ORCHESTRATOR]
    method = "delete_namespaced_persistent_volume_claim"
    assert ask(guarded, method, "CoreV1Api", name=CLAIM)["code"] == 403
