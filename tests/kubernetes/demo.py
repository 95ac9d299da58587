"""`make demo-kubernetes`: the pipeline as Jobs, on a cluster of one node on this machine.

    python -m tests.kubernetes.demo --params demo.yaml

The cluster is the tests' double of the Kubernetes API; its containers are real processes, its
volume a folder. Steps, server and orchestrator run in the environments of their Dockerfiles, and
nothing of the checkout is there. In mid-training the orchestrator is ended with kill -9 and started
again: it adopts the Job that ran on without it. The model is served by an InferenceService, asked,
and taken away again. Its digest comes last: that of the same run on a laptop. Three to five minutes
on two cores.
"""

import argparse
import hashlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from infra.kubernetes_backend.manifests_pod import GPU_RESOURCE
from infra.local.service_client import Address, curl_command
from tests.images.image import image_of
from tests.images.sandbox import Mount
from tests.kubernetes.job_history import JobSeen, jobs_seen
from tests.kubernetes.shipped import MANIFESTS, ORCHESTRATOR
from tests.kubernetes_double.cluster import Cluster
from tests.kubernetes_double.container import ACCOUNT_FOLDER
from trainer.contract.run_folder import RunFolder
from trainer.contract.wording import format_seconds

PVC = "finetune-data"
GPU = "A40"
PROMPT = "The sheriff"
KILLED_AFTER_STEPS = 40
PARAMS = "params.yaml"
Start = Callable[..., "subprocess.Popen[bytes]"]
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
        folder = Path(place)
        folder.chmod(0o755)
        (folder / PARAMS).write_text(yaml.safe_dump(given))
        volumes = {PVC: Path(PVC).resolve()}
        with Cluster(folder / "cluster", volumes, manifests=MANIFESTS) as cluster:
            cluster.node.environment = {"DS_ACCELERATOR": "cpu"}
            print(f"a cluster of one node with 8 {GPU}, as infra/cluster sets a namespace up")
            start = orchestrators(folder, cluster.node.kubeconfigs[ORCHESTRATOR])
            exit_code = orchestrate(start, run)
            if not exit_code:
                exit_code = ask_and_stop(start, cluster, args.run_name)
            print("\n".join(table(jobs_seen(cluster.history()))))
    if not exit_code:
        print("\n".join(digests(run)))
    return exit_code


def orchestrators(folder: Path, kubeconfig: Path) -> Start:
    """Starts `finetune WORDS` in the orchestrator's image, as a person does beside the cluster."""
    image, scratch = image_of("orchestrator"), folder / "tmp"
    scratch.mkdir()
    scratch.chmod(0o777)
    mounts = {
        "/tmp": Mount(source=scratch),
        f"/{PARAMS}": Mount(source=folder / PARAMS, writable=False),
        ACCOUNT_FOLDER: Mount(source=kubeconfig.parent, writable=False),
        f"/{PVC}": Mount(source=Path(PVC).resolve(), writable=False),
    }
    own = {"KUBECONFIG": f"{ACCOUNT_FOLDER}/{kubeconfig.name}"}

    def start(*words: str) -> "subprocess.Popen[bytes]":
        print("+ finetune", *words, flush=True)
        command = image.command(["finetune", *words], mounts=mounts)
        return subprocess.Popen(command, env={**image.environment, **own})

    return start


def orchestrate(start: Start, run: RunFolder) -> int:
    """Run the pipeline as a user does; it is killed once while it trains."""
    words = ("run", "--backend", "kubernetes", "--params", f"/{PARAMS}")
    process = start(*words)
    already = steps_done(run)
    while (exit_code := process.poll()) is None:
        if steps_done(run) >= already + KILLED_AFTER_STEPS and not run.final.exists():
            process.send_signal(signal.SIGKILL)
            process.wait()
            print("+ kill -9 of what follows the Jobs, and the same command again", flush=True)
            return start(*words).wait()
        with_patience(process)
    return exit_code


def ask_and_stop(start: Start, cluster: Cluster, run_name: str) -> int:
    """Ask the service that the run left as a client does, and have it removed."""
    (service,) = cluster.do(lambda: cluster.store.list("inferenceservices"))
    curl = curl_command(Address(service["status"]["url"]), PROMPT)
    print("+", curl, flush=True)
    subprocess.run(f"{curl} --silent --show-error --fail", shell=True, check=True)
    print()
    return start("stop", run_name, "--backend", "kubernetes").wait()


def digests(run: RunFolder) -> Iterator[str]:
    """The weights of the final model, to be compared with those of a run on this machine."""
    for path in sorted(run.final.glob("*.safetensors")):
        with open(path, "rb") as file:
            yield f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path}"


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
