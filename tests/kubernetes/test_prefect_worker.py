"""`prefect deployment run` through a real server and a real Kubernetes worker: a right Job."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import kubernetes_validate
import pytest

from tests.kubernetes_double.admission import violations_of_restricted
from tests.kubernetes_double.cluster import Cluster
from tests.prefect_processes import PREFECT, prefect_environment, prefect_server

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "infra/cluster/base-job-template.json"
DEPLOY = """
from prefect.client.orchestration import get_client
from flows.finetune import finetune
with get_client(sync_client=True) as client:
    flow_id = client.create_flow(finetune)
    client.create_deployment(
        flow_id, "gptj", work_pool_name="coreweave", entrypoint="flows.finetune.finetune",
        parameter_openapi_schema=finetune.parameters.model_dump(),
        parameters={"model": "EleutherAI/gpt-j-6B"},
    )
"""


@contextlib.contextmanager
def worker(environment: dict[str, str], log: Path) -> Iterator[None]:
    command = [*PREFECT, "worker", "start", "--pool", "coreweave", "--type", "kubernetes"]
    with open(log, "ab") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_deployments_run_becomes_a_right_job_of_the_orchestrator(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.node.missing_images.add("finetune-orchestrator:0.1.0")  # its Job is what matters here
    folder = tmp_path / "prefect"
    folder.mkdir()
    with prefect_server(folder) as url:
        environment = {**prefect_environment(folder, url), "KUBECONFIG": str(cluster.kubeconfig)}

        def run(*command: str) -> None:
            done = subprocess.run(
                command, env=environment, cwd=ROOT, capture_output=True, text=True
            )
            assert done.returncode == 0, done.stdout + done.stderr

        pool = ["work-pool", "create", "coreweave", "--type", "kubernetes"]
        run(*PREFECT, *pool, "--base-job-template", str(TEMPLATE))
        run(sys.executable, "-c", DEPLOY)
        asked = ["-p", "run_name=example-gpt-j-6b", "-p", "dataset=dataset"]
        run(*PREFECT, "deployment", "run", "finetune/gptj", *asked)
        with worker(environment, folder / "worker.log"):
            cluster.wait_for(cluster.jobs)
            [job] = cluster.jobs()
    kubernetes_validate.validate(job, "1.36", strict=True)
    pod = job["spec"]["template"]["spec"]
    assert violations_of_restricted(pod) == []
    assert pod["serviceAccountName"] == "finetune-orchestrator"
    [container] = pod["containers"]
    variables = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert variables["FINETUNE_BACKEND"] == "kubernetes"
    assert variables["PREFECT_API_URL"] == url
    assert container["image"] == "finetune-orchestrator:0.1.0"
    assert container["volumeMounts"][0]["mountPath"] == "/finetune-data"
    assert "flow-run" in " ".join(container["args"])
    assert "nvidia.com/gpu" not in json.dumps(job)
