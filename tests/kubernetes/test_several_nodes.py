"""A step on several nodes: an Indexed Job whose pods end and start again together."""

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra.backend import PlaceError, Resources
from infra.kubernetes_backend import creating
from infra.kubernetes_backend.jobs import KubernetesBackend
from tests.images.image import tag_of
from tests.kubernetes.conftest import backend_with, follow, spec, starts
from tests.kubernetes_double.cluster import Cluster

NODES = Resources(gpu="A40", gpus=1, cores=8, memory_gib=32, nodes=2)
INDEX = "batch.kubernetes.io/job-completion-index"


def on_two_nodes(**config: Any) -> Any:
    return dataclasses.replace(spec(**config), resources=NODES)


def test_a_node_that_lost_another_one_is_not_counted_as_a_failure(
    cluster: Cluster, volume: Path, tmp_path: Path
) -> None:
    end, _ = follow(backend_with(tmp_path, backoff_limit=0), on_two_nodes(exit_codes=[75, 0]))
    assert end.exit_code == 0
    assert starts(volume) == 3


def test_the_failure_told_is_that_of_the_node_that_failed(
    cluster: Cluster, volume: Path, tmp_path: Path
) -> None:
    backend = backend_with(tmp_path, backoff_limit=0)
    step = on_two_nodes(exit_codes=[9, 75], until="go")
    backend.submit(step)
    cluster.wait_for(lambda: starts(volume) == 2)
    (volume / "go").touch()
    end = backend.wait(step, lambda line: None)
    assert (end.exit_code, end.outcome["message"]) == (9, "ended with 9")


def test_a_node_that_waits_is_told_of_while_the_other_runs(
    backend: KubernetesBackend, cluster: Cluster, volume: Path
) -> None:
    lines: list[str] = []
    late = tag_of("orchestrator")  # an image that the cluster comes to have

    def refuse_second(what: str, kind: str, pod: Any) -> None:
        if (what, kind) == ("ADDED", "pods") and pod["metadata"]["labels"][INDEX] == "1":
            pod["spec"]["containers"][0]["image"] = late
            cluster.store.update("pods", pod)

    cluster.node.missing_images.add(late)
    cluster.do(lambda: cluster.store.listen(refuse_second))
    step = on_two_nodes(until="go")
    backend.submit(step)
    follower = threading.Thread(target=lambda: backend.wait(step, lines.append))
    follower.start()
    cluster.wait_for(lambda: any("ImagePullBackOff" in line for line in lines))
    cluster.node.missing_images.clear()
    (volume / "go").touch()
    follower.join()
    assert starts(volume) == 2


def test_a_node_whose_pod_may_not_be_made_is_told_of_while_the_other_runs(
    backend: KubernetesBackend, cluster: Cluster, volume: Path
) -> None:
    cluster.controller.most_pods = 1
    step = on_two_nodes(until="go")
    backend.submit(step)
    lines: list[str] = []
    ends: list[Any] = []
    follower = threading.Thread(target=lambda: ends.append(backend.wait(step, lines.append)))
    follower.start()
    cluster.wait_for(lambda: any("exceeded quota: pods" in line for line in lines))
    backend.kill(step)
    follower.join()
    assert ends[0].exit_code == 143


def services(cluster: Cluster) -> list[Any]:
    return cluster.do(lambda: cluster.store.list("services"))


def the_service_is_the_jobs(cluster: Cluster) -> bool:
    [job], [service] = cluster.jobs(), services(cluster)
    [owner] = service["metadata"]["ownerReferences"]
    return owner["uid"] == job["metadata"]["uid"]


def test_a_job_made_anew_has_a_service_that_outlives_the_one_before(
    cluster: Cluster, volume: Path, tmp_path: Path
) -> None:
    backend = backend_with(tmp_path, backoff_limit=0)
    step = on_two_nodes(exit_codes=[9, 9, 0])
    follow(backend, step)
    assert "made anew" in backend.submit(step)
    assert the_service_is_the_jobs(cluster)
    assert backend.wait(step, lambda line: None).exit_code == 0
    assert the_service_is_the_jobs(cluster)


def with_a_digit(step: Any) -> Any:
    return dataclasses.replace(step, run_name="7b-tales")


def test_a_run_may_be_named_by_a_digit_first(
    backend: KubernetesBackend, cluster: Cluster, volume: Path
) -> None:
    end, _ = follow(backend, with_a_digit(on_two_nodes()))
    assert end.exit_code == 0
    [service] = services(cluster)
    pods = [pod["spec"] for pod in cluster.pods()]
    assert {pod["subdomain"] for pod in pods} == {service["metadata"]["name"]}
    variables = {v["name"]: v.get("value") for v in pods[0]["containers"][0]["env"]}
    [job] = cluster.jobs()
    first = f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert variables["MASTER_ADDR"] == first


def refused(cluster: Cluster) -> None:
    cluster.faults.allowed = lambda request: (
        (request.verb, request.resource)
        != (
            "create",
            "services",
        )
    )


def somebody_elses(cluster: Cluster) -> None:
    owner = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "other", "uid": "1"}
    metadata = {"name": "node-run-finetune-01234567", "ownerReferences": [owner]}
    cluster.create("services", {"metadata": metadata, "spec": {"selector": {"app": "other"}}})


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        (refused, "your account may not create services"),
        (somebody_elses, r"belongs to something else \(got Deployment other\).*kubectl delete"),
    ],
)
def test_without_its_service_no_job_is_left(
    backend: KubernetesBackend,
    cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
    trouble: Callable[[Cluster], None],
    words: str,
) -> None:
    monkeypatch.setattr(creating, "LEFTOVER_SECONDS", 0.2)
    trouble(cluster)
    with pytest.raises(PlaceError, match=words):
        backend.submit(on_two_nodes(until="never"))
    cluster.wait_for(lambda: cluster.jobs() == cluster.pods() == [])
