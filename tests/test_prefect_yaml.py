"""prefect.yaml is held to the flows it names: Prefect itself accepts misspelt names silently."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.flows import Flow, load_flow_from_entrypoint

ROOT = Path(__file__).parents[1]
DEPLOYMENTS = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]


@pytest.fixture(params=DEPLOYMENTS, ids=lambda deployment: deployment["name"])
def deployment(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.param


def flow_of(deployment: dict[str, Any]) -> Flow[Any, Any]:
    return load_flow_from_entrypoint(deployment["entrypoint"], use_placeholder_flow=False)


def test_its_parameters_are_parameters_of_the_flow(deployment: dict[str, Any]) -> None:
    known = flow_of(deployment).parameters.properties
    assert set(deployment.get("parameters") or {}) <= set(known)


def test_every_parameter_has_a_description_and_a_type(deployment: dict[str, Any]) -> None:
    for name, schema in flow_of(deployment).parameters.properties.items():
        assert schema.get("description"), name
        assert {"type", "enum", "anyOf", "$ref"} & set(schema), name
