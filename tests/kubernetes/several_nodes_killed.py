"""Training on two nodes of the test cluster, one of them killed.

    python -m tests.kubernetes.several_nodes_killed

Real launchers and training processes on loopback, as the pods of an Indexed Job. The Job starts
the killed pod again, and the other one, which only lost it, without counting that. A minute on
two cores.
"""

import dataclasses
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from flows.cli.prefect_server import free_port
from infra.backend import Resources
from infra.kubernetes_backend.jobs import KubernetesBackend
from tests.kubernetes.conftest import CLAIM, LOOK_SECONDS, spec
from tests.kubernetes_double.cluster import Cluster
from tests.training.volume import make_config, make_volume, read_lines

INDEX = "batch.kubernetes.io/job-completion-index"
KILLED_AT = 12
EPOCHS, STEPS = 20, 60


def main(folder: Path) -> int:
    volume = make_volume(folder / CLAIM)
    with Cluster(folder / "cluster", {CLAIM: volume}) as cluster:
        cluster.node.environment = {
            "MASTER_ADDR": "127.0.0.1",  # here no name server answers for the Service
            "MASTER_PORT": str(free_port()),
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
        }
        os.environ["KUBECONFIG"] = str(cluster.kubeconfig)
        backend = KubernetesBackend(look_seconds=LOOK_SECONDS, volumes=folder)
        config = make_config(volume, nodes=2, epochs=EPOCHS, save_steps=5)
        resources = Resources(gpu="A40", gpus=1, cores=8, memory_gib=32, nodes=2)
        step = dataclasses.replace(spec(**config), resources=resources)
        backend.submit(step)
        lines: list[str] = []
        killed: list[str] = []

        def take(line: str) -> None:
            lines.append(line)
            at_step = f'"step": {KILLED_AT},' in line and line.startswith("::finetune metric")
            if at_step and not killed:
                killed.append(_kill_second(cluster))

        end = backend.wait(step, take)
        made = sum(what == "ADDED" and kind == "pods" for _, what, kind, _ in cluster.history())
    trained = [e["step"] for e in read_lines(volume / "run/metrics.jsonl") if "loss" in e]
    each_once = trained == list(range(1, STEPS + 1))
    good = end.exit_code == 0 and made == 4 and each_once
    again = [line for line in lines if line.startswith("resumes from step")]
    print(f"killed {killed[0]}; {made} pods in all; {again}; exit code {end.exit_code}")
    print(f"steps 1 to {STEPS} once each: {each_once}")
    return 0 if good else 1


def _kill_second(cluster: Cluster) -> str:
    pods = [p for p in cluster.pods() if p["metadata"]["labels"][INDEX] == "1"]
    metadata: dict[str, Any] = pods[0]["metadata"]
    os.kill(cluster.kubelet.containers[metadata["uid"]].pid, signal.SIGKILL)
    return metadata["name"]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="several-nodes-") as place:
        sys.exit(main(Path(place)))
