"""The deployment `finetune/local`, by a real Prefect server and a real process worker."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from infra.local.processes import LocalBackend
from tasks.keys import tracking_key
from tests import readme
from tests.flows.small_volume import PVC, give_way
from tests.flows.test_pipeline import LONG, REQUEST
from tests.flows.unfollowed import begun, what_stop_said
from tests.infra.test_local_processes import PVC as STAND_IN_PVC
from tests.infra.test_local_processes import backend_at, spec
from tests.prefect_processes import PREFECT, on_a_terminal, process_worker
from trainer.contract.errors import RequestError
from trainer.contract.parameters import Parameters

ROOT = Path(__file__).parents[2]
# README's server and worker are these tests' own; its run is `run_deployment`.
LONG_RUNNING_LINES = ["prefect server start", "prefect worker start --pool local"]
LONG_RUNNING = tuple(LONG_RUNNING_LINES)


@pytest.fixture(scope="module")
def deployed(environment: dict[str, str], home: Path) -> str:
    """README's lines were run in `home`; what `prefect deploy --all` wrote on a terminal."""
    (*_, lines) = readme.blocks("With a Prefect server")
    assert [line for line in lines if line.startswith(LONG_RUNNING)] == LONG_RUNNING_LINES
    written = ""
    for line in lines:
        words = shlex.split(line)[1:]
        if words[0] == "deploy":
            written += on_a_terminal([*PREFECT, *words], environment, home)
        elif not line.startswith((*LONG_RUNNING, "prefect deployment run finetune/local")):
            prefect(environment, *words, folder=home)
    return written


@pytest.fixture(scope="module")
def worker(prefect_folder: Path, api_url: str, home: Path, deployed: str) -> Iterator[None]:
    with process_worker(prefect_folder, api_url, "local", PREFECT_WORKER_QUERY_SECONDS="1"):
        yield


def prefect(environment: dict[str, str], *words: str, folder: Path = ROOT) -> str:
    done = subprocess.run(
        [*PREFECT, *words],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=1000,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_deployment(environment: dict[str, str], *words: str, **parameters: Any) -> str:
    given = (f"{name}={value}" for name, value in {**REQUEST, **parameters}.items())
    assigned = [word for item in given for word in ("-p", item)]
    return prefect(environment, "deployment", "run", "finetune/local", *assigned, *words)


def api(api_url: str, path: str, **body: Any) -> Any:
    request = urllib.request.Request(
        f"{api_url}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    while True:
        try:
            with urllib.request.urlopen(request, timeout=280) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            if error.code != 503:  # as Prefect's own client asks again while the database is busy
                raise
        time.sleep(0.5)


def latest_run(api_url: str, name: str) -> dict[str, Any]:
    found = api(
        api_url, "flow_runs/filter", flow_runs={"name": {"any_": [name]}}, sort="START_TIME_DESC"
    )
    return found[0]


def task_states(api_url: str, flow_run_id: str) -> dict[str, str]:
    tasks = api(api_url, "task_runs/filter", flow_runs={"id": {"any_": [flow_run_id]}})
    return {task["name"].split()[0]: task["state"]["name"] for task in tasks}


def test_it_runs_the_same_pipeline_and_shows_it(
    api_url: str, environment: dict[str, str], home: Path, worker: None
) -> None:
    run_deployment(environment, "--watch", run_name="deployed", epochs=2)
    run = latest_run(api_url, "deployed")
    assert run["state"]["name"] == "Completed"
    assert run["parameters"]["context"] == 64
    assert {"models/tiny", "dataset", "finetune"} <= set(run["tags"])
    assert task_states(api_url, run["id"])["finetune"] == "Completed"
    assert (home / PVC / "deployed/final/model.safetensors").exists()

    artifacts = api(api_url, "artifacts/filter", flow_runs={"id": {"any_": [run["id"]]}})
    by_key = {artifact["key"]: artifact for artifact in artifacts}
    rows = json.loads(by_key["deployed-result"]["data"])
    named = {row["step"]: row["result"] for row in rows}
    assert float(named["finetuned_loss"]) < float(named["base_loss"])
    curves = home / PVC / "logs/deployed/tensorboard"
    assert f"tensorboard --logdir {curves}" in by_key["deployed-tensorboard"]["data"]
    assert list(curves.iterdir())
    plan = {row["figure"]: row["plan"] for row in json.loads(by_key["deployed-plan"]["data"])}
    recorded = json.loads((home / PVC / "deployed/run.json").read_text())["plan"]
    metrics = (home / PVC / "deployed/metrics.jsonl").read_text().splitlines()
    steps = max(json.loads(line)["step"] for line in metrics)
    assert recorded["steps"] == pytest.approx(steps, rel=0.1)
    assert plan["steps"].startswith(f"{recorded['steps']:,} of 4 contexts")
    assert "(estimated)" in plan["contexts"]
    tokens = {row["figure"]: row["value"] for row in json.loads(by_key["deployed-tokens"]["data"])}
    assert tokens["files"] == "40"
    assert 0 <= float(tokens["repeated share"]) < 1
    assert float(tokens["megabytes per second"]) > 0
    assert f"finetune tokens {home / PVC / tokens['store']}" in by_key["deployed-store"]["data"]
    for artifact in artifacts:  # a column without a name is not shown
        if artifact["type"] == "table":
            for row in json.loads(artifact["data"]):
                assert all(row) and all(str(value) for value in row.values()), artifact["key"]
    logs = api(api_url, "logs/filter", logs={"flow_run_id": {"any_": [run["id"]]}}, limit=200)
    assert any("finetune" in entry["message"] for entry in logs)

    (store,) = (home / PVC / "tokens").glob("dataset-*")
    (store / "tokens.bin").write_bytes((store / "tokens.bin").read_bytes()[:-2])
    run_deployment(environment, "--watch", run_name="deployed", epochs=2, trainer_cores=4)
    again = latest_run(api_url, "deployed")
    assert again["id"] != run["id"]
    artifacts = api(api_url, "artifacts/filter", flow_runs={"id": {"any_": [again["id"]]}})
    by_key = {artifact["key"]: artifact for artifact in artifacts}
    plan = {row["figure"]: row["plan"] for row in json.loads(by_key["deployed-plan"]["data"])}
    found = {row["figure"]: row["value"] for row in json.loads(by_key["deployed-tokens"]["data"])}
    assert found["store"] == tokens["store"]
    assert float(found["megabytes per second"]) > 0  # made again, see below
    assert "(exact)" in plan["contexts"]
    assert plan["steps"].startswith(f"{steps:,} of 4 contexts")
    logs = api(api_url, "logs/filter", logs={"flow_run_id": {"any_": [again["id"]]}}, limit=200)
    said = [entry["message"] for entry in logs]
    assert said.count("without effect here: trainer_cores") == 1
    states = task_states(api_url, again["id"])
    assert states.pop("plan") == "Completed"
    assert states.pop("tokenize") == "Completed"  # the store was damaged
    assert set(states) == {"fetch", "finetune", "evaluate", "deploy"}
    assert set(states.values()) == {"Cached"}


def test_deploying_all_on_a_terminal_asks_nothing(api_url: str, deployed: str, home: Path) -> None:
    named = [d["name"] for d in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]]
    assert deployed.count("successfully created") == len(named)
    assert "Would you like" not in deployed and "[y/n]" not in deployed
    found = {d["name"]: d for d in api(api_url, "deployments/filter")}
    assert set(found) == set(named)
    folders = {
        name: step["tasks.working_folder.enter"]["deployed_from"]
        for name, deployment in found.items()
        for step in deployment["pull_steps"]
    }
    assert folders == dict.fromkeys(named, str(home))
    scheduled = [name for name, deployment in found.items() if deployment["schedules"]]
    assert scheduled == ["nightly"]


@pytest.mark.parametrize("name", ["gptj", "gpt-neo", "pythia", "local"])
def test_its_form_describes_every_parameter(
    api_url: str, environment: dict[str, str], worker: None, name: str
) -> None:
    (deployment,) = api(api_url, "deployments/filter", deployments={"name": {"any_": [name]}})
    form = deployment["parameter_openapi_schema"]
    schema = form["properties"]
    assert set(schema) == set(Parameters.model_fields)
    assert form["required"] == ["run_name"]
    positions = [schema[name]["position"] for name in schema]
    assert sorted(positions) == list(range(len(schema)))
    assert all(parameter["description"] for parameter in schema.values())
    assert schema["epochs"]["exclusiveMinimum"] == 0
    settings = schema["cluster"]["properties"]
    assert all(
        "as FINETUNE_CLUSTER says" in setting["description"] for setting in settings.values()
    )
    assert not any("default" in setting for setting in settings.values())


def test_the_key_for_tracking_may_be_a_block_of_prefects(api_url: str) -> None:
    with temporary_settings({PREFECT_API_URL: api_url}):
        Secret(value="the key itself").save("wandb-token")
        assert tracking_key("wandb-token") == {"WANDB_API_KEY": "the key itself"}
        with pytest.raises(RequestError, match=r"wandb_key names nothing .*got 'wandb-tokn'"):
            tracking_key("wandb-tokn")


def test_a_run_whose_orchestrator_was_killed_goes_on_by_itself_and_is_cancelled_with_its_step(
    api_url: str, environment: dict[str, str], home: Path, worker: None
) -> None:
    for _ in range(2):
        subprocess.run(
            [sys.executable, "-m", "flows.cli", "automations"], env=environment, check=True
        )
    names = [automation["name"] for automation in api(api_url, "automations/filter")]
    ours = sorted(name for name in names if name.startswith("finetune: "))
    assert ours == ["finetune: crashed", "finetune: not started", "finetune: silent"]
    run_deployment(environment, run_name="crashed", epochs=LONG)
    deadline = time.monotonic() + 1000
    while not (home / PVC / "crashed/metrics.jsonl").exists():
        assert time.monotonic() < deadline, "training did not begin"
        time.sleep(0.1)
    give_way(f"{home}/{PVC}/.runs/crashed/")
    run = latest_run(api_url, "crashed")
    os.kill(int(run["infrastructure_pid"].split(":")[-1]), signal.SIGKILL)
    while (again := latest_run(api_url, "crashed"))["run_count"] < 2:
        assert time.monotonic() < deadline, again["state"]
        time.sleep(0.5)
    assert again["id"] == run["id"]
    prefect(environment, "flow-run", "cancel", run["id"])
    backend = LocalBackend(home)
    while backend.running_steps(PVC, "crashed"):
        assert time.monotonic() < deadline, "the step continues"
        time.sleep(0.1)
    while latest_run(api_url, "crashed")["state"]["type"] != "CANCELLED":
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert list((home / PVC / "crashed/checkpoints").glob("step-*"))
    log = (home / PVC / "logs/crashed/finetune.log").read_text()
    assert "resumes from step" not in log  # the step was adopted, not started again


@pytest.fixture
def unfollowed(home: Path) -> Iterator[LocalBackend]:
    """With a step of the run `run` running that nobody follows."""
    (home / STAND_IN_PVC).mkdir(exist_ok=True)
    backend = backend_at(home)
    backend.submit(spec(until="never"))
    yield backend
    backend.stop(STAND_IN_PVC, "run")


@pytest.mark.parametrize("cancelled_as", ["Cancelling", "Cancelled"])
def test_a_run_cancelled_while_it_waits_to_be_started_again_ends_its_step(
    api_url: str,
    environment: dict[str, str],
    unfollowed: LocalBackend,
    worker: None,
    cancelled_as: str,
) -> None:
    with temporary_settings({PREFECT_API_URL: api_url}), get_client(sync_client=True) as client:
        run = begun(client, "finetune/local", {"run_name": "run", "pvc": STAND_IN_PVC})
        if cancelled_as == "Cancelling":  # then Prefect takes it for one that has an orchestrator
            client.update_flow_run(run.id, infrastructure_pid="gone:1")
        prefect(environment, "flow-run", "cancel", str(run.id))
        state = client.read_flow_run(run.id).state
        assert state is not None and state.name == cancelled_as
        told = what_stop_said(client, run.id)
        state = client.read_flow_run(run.id).state
    assert told == f"{run.name}: stopped finetune of run."
    assert unfollowed.running_steps(STAND_IN_PVC, "run") == []
    assert state is not None and state.is_cancelled()
