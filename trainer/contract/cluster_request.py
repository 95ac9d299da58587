"""What a run is told of its cluster: the parameter `cluster` over FINETUNE_CLUSTER.

Both are validated by the same rules. A setting at its default is not a choice: Prefect's
form sends the defaults of all settings, and FINETUNE_CLUSTER must stay in force.
"""

import json
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, TypeAdapter, WithJsonSchema

from trainer.contract.cluster_settings import VARIABLE, ClusterSettings, chosen, cluster_file
from trainer.contract.errors import RequestError
from trainer.contract.parameter_types import from_text
from trainer.contract.validation import load_json


def _settings_given(value: Any) -> dict[str, Any]:
    """The settings as they were given, validated; null is a setting left out."""
    given = from_text(value)
    if isinstance(given, dict):
        given = {name: setting for name, setting in given.items() if setting is not None}
    TypeAdapter(ClusterSettings).validate_json(json.dumps(given))
    return given


def _form() -> dict[str, Any]:
    """The schema of the settings without defaults: a form then sends what was filled in."""
    schema = TypeAdapter(ClusterSettings).json_schema()
    for setting in schema["properties"].values():
        usual = setting.pop("default", None)
        fallback = f" ({usual})" if usual or usual == 0 else ""
        setting["description"] += f" Empty: as FINETUNE_CLUSTER says, else the default{fallback}."
    return schema


Cluster = Annotated[dict[str, Any], BeforeValidator(_settings_given), WithJsonSchema(_form())]


def cluster_settings_over(given: Mapping[str, Any]) -> ClusterSettings:
    """What FINETUNE_CLUSTER says, with the chosen settings in `given` before it.

    Raises:
        RequestError: FINETUNE_CLUSTER is wrong, with everything that is wrong in it.
    """
    try:
        found = cluster_file()
    except ValueError as error:
        raise RequestError(str(error)) from error
    try:
        load_json(ClusterSettings, json.dumps(found), VARIABLE)
    except RequestError as error:
        raise RequestError(
            *(f"{VARIABLE}: {_of_cluster(line)}" for line in error.problems)
        ) from error
    merged = {**found, **chosen(given)}
    return load_json(ClusterSettings, json.dumps(merged), "cluster")


def _of_cluster(problem: str) -> str:
    return problem.replace(" is not a parameter.", " is not a setting of a cluster.")


def overruled(given: Mapping[str, Any]) -> list[str]:
    """Settings that were given at their default, where FINETUNE_CLUSTER says something else."""
    found, picked = cluster_file(), chosen(given)
    return [
        f"cluster.{name} (its default is no choice: {VARIABLE} says {found[name]!r})"
        for name in given
        if name not in picked and name in found and found[name] != given[name]
    ]
