"""A step on several nodes: an Indexed Job whose pods end and start again together."""

import dataclasses
import threading
from pathlib import Path
from typing import Any

from infra.backend import Resources
from infra.kubernetes_backend.jobs import KubernetesBackend
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

    def refuse_second(what: str, kind: str, pod: Any) -> None:
        if (what, kind) == ("ADDED", "pods") and pod["metadata"]["labels"][INDEX] == "1":
            pod["spec"]["containers"][0]["image"] = "missing:1"
            cluster.store.update("pods", pod)

    cluster.node.missing_images.add("missing:1")
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
