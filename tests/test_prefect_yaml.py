"""prefect.yaml is held to the flows it names: Prefect itself accepts misspelt names silently."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.flows import Flow, load_flow_from_entrypoint
from prefect.workers.process import ProcessWorker

from tasks.working_folder import enter
from trainer.contract.parameters import Parameters
from trainer.contract.validation import load_parameters

ROOT = Path(__file__).parents[1]
DEPLOYMENTS = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
TEMPLATES = {
    "local": ProcessWorker.get_default_base_job_template(),
    "coreweave": json.loads((ROOT / "infra/cluster/base-job-template.json").read_text()),
}
# What prefect.yaml may say of a deployment; Prefect ignores other keys.
KEYS = {
    "name", "description", "entrypoint", "parameters", "work_pool", "tags", "concurrency_limit",
    "schedules", "enforce_parameter_schema", "version", "triggers", "build", "pull",
}  # fmt: skip


@pytest.fixture(params=DEPLOYMENTS, ids=lambda deployment: deployment["name"])
def deployment(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.param


def flow_of(deployment: dict[str, Any]) -> Flow[Any, Any]:
    return load_flow_from_entrypoint(deployment["entrypoint"], use_placeholder_flow=False)


def test_there_is_one_for_each_family_of_models_and_one_for_this_machine() -> None:
    pools = {d["name"]: d["work_pool"]["name"] for d in DEPLOYMENTS}
    asked = {"gptj": "coreweave", "gpt-neo": "coreweave", "pythia": "coreweave", "local": "local"}
    assert asked.items() <= pools.items()
    # `prefect deploy --all` ends at the first pool that is missing.
    assert DEPLOYMENTS[0]["name"] == "local"


def test_every_name_in_it_is_one_that_prefect_or_the_pool_knows(
    deployment: dict[str, Any],
) -> None:
    assert set(deployment) <= KEYS
    pool = deployment["work_pool"]
    assert set(pool) <= {"name", "work_queue_name", "job_variables"}
    variables = TEMPLATES[pool["name"]]["variables"]["properties"]
    assert set(pool["job_variables"]) <= set(variables)


def test_a_process_run_begins_in_the_folder_of_the_deploy_and_a_pod_in_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("FINETUNE_BACKEND", "kubernetes")
    assert enter(str(tmp_path)) == {"directory": str(ROOT)}
    monkeypatch.delenv("FINETUNE_BACKEND")
    assert enter(str(tmp_path)) == {"directory": str(tmp_path)}
    assert Path.cwd() == tmp_path
    with pytest.raises(FileNotFoundError, match="not on the worker's machine"):
        enter(str(tmp_path / "none"))


def test_every_deployment_finds_its_volume(deployment: dict[str, Any]) -> None:
    assert deployment["pull"] == [
        {"tasks.working_folder.enter": {"deployed_from": "{{ folder.stdout }}"}}
    ]


def test_its_parameters_are_a_request_once_a_run_has_a_name(deployment: dict[str, Any]) -> None:
    given = deployment["parameters"] or {}
    parameters = load_parameters(Parameters, {**given, "run_name": "run"})
    assert {name: getattr(parameters, name) for name in given} == given
    assert set(given) <= set(flow_of(deployment).parameters.properties)


def test_a_cluster_deployment_mounts_the_volume_that_its_runs_use(
    deployment: dict[str, Any],
) -> None:
    claim = deployment["work_pool"]["job_variables"].get("pvc")
    if deployment["work_pool"]["name"] == "coreweave":
        parameters = {**deployment["parameters"], "run_name": "run"}
        assert claim == load_parameters(Parameters, parameters).pvc


def test_every_parameter_has_a_description_and_a_type(deployment: dict[str, Any]) -> None:
    for name, schema in flow_of(deployment).parameters.properties.items():
        assert schema.get("description"), name
        assert {"type", "enum", "anyOf", "$ref"} & set(schema), name
