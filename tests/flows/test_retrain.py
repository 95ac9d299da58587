"""`retrain/nightly` on a schedule that really fires: real server, worker and training."""

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from infra.local import service as local_service
from tests import readme
from tests.flows.small_volume import PVC
from tests.flows.test_deployment import ROOT, api, prefect
from tests.flows.test_pipeline import REQUEST
from tests.prefect_processes import prefect_environment, prefect_server, process_worker
from trainer.contract.run_folder import RunFolder
from trainer.retraining.step import Series

PARAMETERS = {**REQUEST, "epochs": 2, "run_inference": True}
# What the guide has on a cluster, and what stands for it here.
HERE = {
    "s3://texts/west": "dataset",
    "EleutherAI/gpt-j-6B": "models/tiny",
    "deploy --name nightly": "deploy --name nightly --pool local",
}
COMMANDS = {
    "prefect": [sys.executable, "-m", "prefect"],
    "finetune": [sys.executable, "-m", "flows.cli"],
}
# kubectl's are held by tests/kubernetes/test_cluster_folder.py, the images by their lists of
# packages, a rehearsal with a cluster by test_rehearse.py, and finetune/gptj by
# tests/kubernetes/test_prefect_worker.py.
ONLY_ON_A_CLUSTER = (
    "make images",
    "kubectl",
    "export",
    "finetune rehearse --backend kubernetes",
    "prefect deployment run finetune/gptj",
)


@pytest.fixture(scope="module")
def prefect_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prefect")


@pytest.fixture(scope="module")
def api_url(prefect_folder: Path) -> Iterator[str]:
    """A server with nothing on it, as the guide begins with."""
    with prefect_server(prefect_folder) as url:
        yield url


@pytest.fixture(scope="module")
def environment(prefect_folder: Path, api_url: str) -> dict[str, str]:
    environment = prefect_environment(prefect_folder, api_url)
    # A worker of the cluster makes its pool.
    template = str(ROOT / "infra/cluster/base-job-template.json")
    made = ("work-pool", "create", "coreweave", "--type", "kubernetes")
    prefect(environment, *made, "--base-job-template", template)
    return environment


def guide() -> list[str]:
    """The commands of README's guide to a nightly retraining."""
    blocks = readme.blocks("From an empty cluster to a nightly retraining")[:3]
    return [line for block in blocks for line in block]


def run_here(line: str, environment: dict[str, str], home: Path, schedule: str = "") -> str:
    """Run a line of the guide in `home`, with what this machine has for what a cluster has."""
    for there, here in {**HERE, " ID": f" {schedule}"}.items():
        line = line.replace(there, here)
    words = [word for part in shlex.split(line) for word in COMMANDS.get(part, [part])]
    done = subprocess.run(words, env=environment, cwd=home, capture_output=True, text=True)
    assert done.returncode == 0, line + done.stdout + done.stderr
    return done.stdout


def nightly(api_url: str) -> dict[str, Any]:
    (deployment,) = api(api_url, "deployments/filter", deployments={"name": {"any_": ["nightly"]}})
    return deployment


def change(api_url: str, **body: Any) -> None:
    """By Prefect's client, which asks again where the server's database was busy."""
    path = f"/deployments/{nightly(api_url)['id']}"
    with temporary_settings({PREFECT_API_URL: api_url}), get_client(sync_client=True) as client:
        client.request("PATCH", path, json=body).raise_for_status()  # type: ignore[arg-type]


def runs_in(api_url: str, *states: str, by: str = "name") -> list[dict[str, Any]]:
    ours = {
        "deployment_id": {"any_": [nightly(api_url)["id"]]},
        "state": {by: {"any_": list(states)}},
    }
    return api(api_url, "flow_runs/filter", flow_runs=ours)


def wait_for(api_url: str, *states: str, without: str = "") -> dict[str, Any]:
    """The first run that is in one of the states, or was, and is not `without`."""
    deadline = time.monotonic() + 1000
    while not (found := [run for run in runs_in(api_url, *states) if run["id"] != without]):
        failed = runs_in(api_url, "Failed", "Crashed")
        assert not failed, failed[0]["state"]["message"]
        assert time.monotonic() < deadline, f"no run came to be {states}"
        time.sleep(0.3)
    return found[0]


def wait_until_idle(api_url: str) -> None:
    """Until nothing is running that another run would be cancelled for."""
    deadline = time.monotonic() + 1000
    while runs_in(api_url, "SCHEDULED", "PENDING", "RUNNING", by="type"):  # each has several names
        assert time.monotonic() < deadline
        time.sleep(0.3)


@pytest.mark.timeout(2400)
def test_readmes_guide_gives_a_retraining_that_starts_by_event_and_by_schedule(
    api_url: str, environment: dict[str, str], home: Path, prefect_folder: Path
) -> None:
    lines = guide()
    on_cluster = [line for line in lines if line.startswith(ONLY_ON_A_CLUSTER)]
    assert len(on_cluster) == 6, on_cluster
    lines = [line for line in lines if line not in on_cluster]
    assert lines[-1].startswith("prefect deployment schedule pause")
    told = [run_here(line, environment, home) for line in lines[:-4]]
    assert "retrain/nightly" in "".join(told)
    assert [schedule["active"] for schedule in nightly(api_url)["schedules"]] == [False]
    change(api_url, parameters={**nightly(api_url)["parameters"], **PARAMETERS}, job_variables={})
    shown = run_here(lines[-4], environment, home)
    schedule = nightly(api_url)["schedules"][0]["id"]
    assert schedule in shown
    run_here(lines[-3], environment, home, schedule)
    assert [schedule["active"] for schedule in nightly(api_url)["schedules"]] == [True]
    with process_worker(prefect_folder, api_url, "local", PREFECT_WORKER_QUERY_SECONDS="1"):
        assert "dataset.updated" in run_here(lines[-2], environment, home)
        by_event = wait_for(api_url, "Running")
        assert by_event["parameters"]["dataset"] == "dataset"
        assert not by_event["auto_scheduled"]
        change(api_url, schedules=[{"active": True, "schedule": {"interval": 5}}])
        unchanged = wait_for(api_url, "Unchanged")
        run_here(lines[-1], environment, home, nightly(api_url)["schedules"][0]["id"])
        first = Series(home / PVC, "nightly").champion()
        assert first is not None
        wait_until_idle(api_url)
        from_last = {**nightly(api_url)["parameters"], "start_from": "last", "epochs": 1}
        change(api_url, parameters=from_last)
        run_here("finetune notify-data dataset", environment, home)
        last = wait_for(api_url, "Promoted", "Kept", without=by_event["id"])
        assert last["parameters"]["dataset"] == "dataset"
    assert [schedule["active"] for schedule in nightly(api_url)["schedules"]] == [False]

    series = Series(home / PVC, "nightly")
    champion = series.champion()
    assert champion is not None
    try:
        assert by_event["id"] in {run["id"] for run in runs_in(api_url, "Promoted")}
        assert unchanged["auto_scheduled"]
        assert first["run"] in unchanged["state"]["message"]
        # Those that the schedule started meanwhile.
        cancelled = runs_in(api_url, "Cancelled")
        assert cancelled
        assert "concurrency limit" in cancelled[0]["state"]["message"]
        decided = series.decisions()
        assert decided[0]["loss"] < decided[0]["base_loss"]
        # The last one was trained from what the first one came to, and compared with it.
        record = RunFolder(home / PVC, decided[-1]["run"]).record()
        assert record is not None
        assert record["model"] == f"{first['run']}/final"
        assert decided[-1]["champion_loss"] == pytest.approx(decided[0]["loss"], rel=1e-4)
        assert local_service.running(home / PVC, champion["run"]) is not None
        served = (home / PVC / champion["run"] / "services.jsonl").read_text().splitlines()
        assert [json.loads(line)["event"] for line in served] == ["served"]  # once, to stay
    finally:
        local_service.stop(home / PVC, champion["run"])
    artifacts = api(api_url, "artifacts/filter", artifacts={"key": {"any_": ["nightly-decision"]}})
    values = {row["value"] for artifact in artifacts for row in json.loads(artifact["data"])}
    assert {"unchanged", "promoted"} <= values
