"""`retrain/nightly` on a schedule that really fires: real server, worker and training."""

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra import local_service
from tests.flows.small_volume import PVC
from tests.flows.test_deployment import api, prefect
from tests.flows.test_pipeline import REQUEST
from tests.prefect_processes import process_worker
from trainer.champion import Series

PARAMETERS = {**REQUEST, "epochs": 2, "run_inference": True}


@pytest.fixture(scope="module")
def worker(
    prefect_folder: Path, api_url: str, home: Path, environment: dict[str, str]
) -> Iterator[None]:
    """A worker on this machine, and the shipped deployment moved there."""
    prefect(environment, "work-pool", "create", "local", "--type", "process")
    prefect(environment, "deploy", "--name", "nightly", "--pool", "local")
    variables = {"FINETUNE_HOME": str(home), "PREFECT_WORKER_QUERY_SECONDS": "1"}
    with process_worker(prefect_folder, api_url, "local", **variables):
        yield


def nightly(api_url: str) -> dict[str, Any]:
    (deployment,) = api(api_url, "deployments/filter", deployments={"name": {"any_": ["nightly"]}})
    return deployment


def change(api_url: str, **body: Any) -> None:
    url = f"{api_url}/deployments/{nightly(api_url)['id']}"
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), headers, method="PATCH")
    urllib.request.urlopen(request, timeout=30).close()


def runs_in(api_url: str, *states: str) -> list[dict[str, Any]]:
    ours = {
        "deployment_id": {"any_": [nightly(api_url)["id"]]},
        "state": {"name": {"any_": list(states)}},
    }
    return api(api_url, "flow_runs/filter", flow_runs=ours)


def wait_for(api_url: str, state: str) -> dict[str, Any]:
    """The first run that is in that state, or was."""
    deadline = time.monotonic() + 400
    while not (found := runs_in(api_url, state)):
        failed = runs_in(api_url, "Failed", "Crashed")
        assert not failed, failed[0]["state"]["message"]
        assert time.monotonic() < deadline, f"no run came to be {state}"
        time.sleep(0.3)
    return found[0]


@pytest.mark.timeout(900)
def test_new_data_starts_a_training_and_the_schedule_finds_nothing_more_to_do(
    api_url: str, environment: dict[str, str], home: Path, worker: None
) -> None:
    assert [schedule["active"] for schedule in nightly(api_url)["schedules"]] == [False]
    change(api_url, parameters=PARAMETERS, job_variables={})
    notify = [sys.executable, "-m", "flows.cli", "notify-data", "dataset"]
    told = subprocess.run(notify, env=environment, capture_output=True, text=True)
    assert "dataset.updated" in told.stdout, told.stderr
    by_event = wait_for(api_url, "Running")
    assert by_event["parameters"]["dataset"] == "dataset"
    assert not by_event["auto_scheduled"]
    change(api_url, schedules=[{"active": True, "schedule": {"interval": 5}}])
    unchanged = wait_for(api_url, "Unchanged")
    change(api_url, paused=True)

    series = Series(home / PVC, "nightly")
    champion = series.champion()
    assert champion is not None
    try:
        (promoted,) = runs_in(api_url, "Promoted")
        assert promoted["id"] == by_event["id"]
        assert unchanged["auto_scheduled"]
        assert champion["run"] in unchanged["state"]["message"]
        # Those that the schedule started meanwhile.
        cancelled = runs_in(api_url, "Cancelled")
        assert cancelled
        assert "concurrency limit" in cancelled[0]["state"]["message"]
        first = series.decisions()[0]
        assert first["loss"] < first["base_loss"]
        assert local_service.running(home / PVC, champion["run"]) is not None
    finally:
        local_service.stop(home / PVC, champion["run"])
    artifacts = api(api_url, "artifacts/filter", artifacts={"key": {"any_": ["nightly-decision"]}})
    values = {row["value"] for artifact in artifacts for row in json.loads(artifact["data"])}
    assert {"unchanged", "promoted"} <= values
