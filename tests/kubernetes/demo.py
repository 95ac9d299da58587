"""`make demo-kubernetes`: the pipeline as Jobs, on a cluster of one node on this machine.

    python -m tests.kubernetes.demo --params demo.yaml

The cluster is the tests' double of the Kubernetes API; its containers are real processes, its
volume a folder. In mid-training the orchestrator is ended with kill -9 and started again: it
meets the Job that went on without it. The model that comes out is served by an InferenceService,
asked, and taken away again. Three to five minutes on two cores.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from infra.manifests_pod import GPU_RESOURCE
from infra.service_client import Address, curl_command
from tasks.wording import format_seconds
from tests.kubernetes.job_history import JobSeen, jobs_seen
from tests.kubernetes.shipped import MANIFESTS, ORCHESTRATOR
from tests.kubernetes_double.cluster import Cluster
from trainer.run_folder import RunFolder

PVC = "finetune-data"
GPU = "A40"
PROMPT = "The sheriff"
KILLED_AFTER_STEPS = 40
COLUMNS = "{:<38} {:>4} {:>4} {:>9}  {}"


def main() -> int:
    parser = argparse.ArgumentParser(description="The whole pipeline as Kubernetes Jobs, here.")
    parser.add_argument("--params", type=Path, required=True, help="parameters of the run")
    parser.add_argument("--run-name", default="demo-kubernetes")
    args = parser.parse_args()
    given = yaml.safe_load(args.params.read_text())
    given |= {"run_name": args.run_name, "run_inference": True, "inference_gpu": GPU}
    run = RunFolder(PVC, args.run_name)
    with tempfile.TemporaryDirectory(prefix="demo-kubernetes-") as place:
        params = Path(place) / "params.yaml"
        params.write_text(yaml.safe_dump(given))
        command = [sys.executable, "-m", "flows.cli", "run", "--backend", "kubernetes"]
        command += ["--params", str(params)]
        volumes = {PVC: Path(PVC).resolve()}
        with Cluster(Path(place) / "cluster", volumes, manifests=MANIFESTS) as cluster:
            cluster.node.environment = {"DS_ACCELERATOR": "cpu"}
            os.environ["KUBECONFIG"] = str(cluster.node.kubeconfigs[ORCHESTRATOR])
            print(f"a cluster of one node with 8 {GPU}, as infra/cluster sets a namespace up")
            exit_code = orchestrate(command, run)
            if not exit_code:
                exit_code = ask_and_stop(cluster, args.run_name)
            print("\n".join(table(jobs_seen(cluster.history()))))
    return exit_code


def orchestrate(command: list[str], run: RunFolder) -> int:
    """Run the command line as a user does; it is killed once while it trains."""
    print("+ finetune", *command[3:], flush=True)
    process = subprocess.Popen(command)
    already = steps_done(run)
    while (exit_code := process.poll()) is None:
        if steps_done(run) >= already + KILLED_AFTER_STEPS and not run.final.exists():
            process.send_signal(signal.SIGKILL)
            process.wait()
            print("+ kill -9 of what follows the Jobs, and the same command again", flush=True)
            return subprocess.run(command, check=False).returncode
        with_patience(process)
    return exit_code


def ask_and_stop(cluster: Cluster, run_name: str) -> int:
    """Ask the service that the run left as a client does, and have it removed."""
    (service,) = cluster.do(lambda: cluster.store.list("inferenceservices"))
    curl = curl_command(Address(service["status"]["url"]), PROMPT)
    print("+", curl, flush=True)
    subprocess.run(f"{curl} --silent --show-error --fail", shell=True, check=True)
    stop = ["stop", run_name, "--backend", "kubernetes"]
    print()
    print("+ finetune", *stop, flush=True)
    return subprocess.run([sys.executable, "-m", "flows.cli", *stop], check=False).returncode


def with_patience(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(0.2)
    except subprocess.TimeoutExpired:
        return


def steps_done(run: RunFolder) -> int:
    return run.metrics.read_bytes().count(b"\n") if run.metrics.exists() else 0


def table(jobs: list[JobSeen]) -> Iterator[str]:
    """What became of each Job that there was."""
    yield COLUMNS.format("JOB", "GPUS", "PODS", "TIME", "ENDED")
    for job in jobs:
        limits: dict[str, Any] = job.pod_spec["containers"][0]["resources"]["limits"]
        took = format_seconds(job.seconds)
        yield COLUMNS.format(job.name, limits.get(GPU_RESOURCE, 0), job.num_pods, took, job.said)


if __name__ == "__main__":
    sys.exit(main())
