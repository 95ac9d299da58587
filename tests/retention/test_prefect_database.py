"""Prefect's database stays small: the settings that the cluster's server has, and the docs name."""

import re
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from prefect.settings.models.server.services import ServerServicesDBVacuumSettings

ROOT = Path(__file__).parents[2]


def of_the_manifest() -> dict[str, str]:
    text = (ROOT / "infra/cluster/prefect-server.yaml").read_text()
    objects = [found for found in yaml.safe_load_all(text) if found["kind"] == "Deployment"]
    container = objects[0]["spec"]["template"]["spec"]["containers"][0]
    return {entry["name"]: entry["value"] for entry in container["env"]}


def of_the_docs() -> dict[str, str]:
    text = (ROOT / "docs/commands.md").read_text()
    return dict(re.findall(r"^export (PREFECT_SERVER\w+)=(\S+)", text, re.MULTILINE))


@pytest.mark.parametrize("named", [of_the_manifest(), of_the_docs()], ids=["cluster", "docs"])
def test_prefects_server_deletes_old_flow_runs(
    named: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in named.items():
        monkeypatch.setenv(name, value)
    settings = ServerServicesDBVacuumSettings()
    assert settings.enabled_vacuum_types == {"events", "flow_runs", "orphans"}
    assert settings.retention_period == timedelta(days=90)
    monkeypatch.delenv("PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED")
    assert "flow_runs" not in ServerServicesDBVacuumSettings().enabled_vacuum_types
