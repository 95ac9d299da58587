"""Which parameters were set and choose nothing where the run is: they are said, not ignored."""

import dataclasses
import os

from trainer.contract.cluster_request import overruled
from trainer.contract.cluster_settings import chosen
from trainer.contract.parameters import Parameters
from trainer.contract.topics import ServingConfig
from trainer.contract.tracker_variables import ALL as TRACKER_VARIABLES

# Where steps are processes of this machine, these choose nothing.
OF_CLUSTERS = (
    "region trainer_gpu trainer_cores trainer_ram inference_gpu finetuner_image finetuner_tag "
    "cluster"
).split()
SERVING_EVERYWHERE = (
    "max_regression",
    "engine",
    "engine_args",
    "tensorizer_uri",
    "api_key",
    "cors_origins",
    "adapters",
)
# Anywhere the one on the left chooses nothing while the one on the right is empty.
NEEDS = {"prompt_every": "prompt_file", "project_id": "wandb_key"}


def without_effect(parameters: Parameters, *, on_cluster: bool) -> list[str]:
    """Parameters that were set and choose nothing, by the names that a user typed."""
    fields = Parameters.model_fields
    set_names = [n for n in (*OF_CLUSTERS, *NEEDS) if getattr(parameters, n) != fields[n].default]
    if not chosen(parameters.cluster) and "cluster" in set_names:
        set_names.remove("cluster")  # a form's defaults
    found = [
        f"{name} (without {NEEDS[name]})"
        for name in set_names
        if name in NEEDS and not getattr(parameters, NEEDS[name])
        if name != "project_id" or not _tracked_by_environment(parameters)
    ]
    if on_cluster:
        return overruled(parameters.cluster) + found
    return [name for name in set_names if name in OF_CLUSTERS] + _of_serving(parameters) + found


def _tracked_by_environment(parameters: Parameters) -> bool:
    """Whether a variable here, or one of the cluster's Jobs, names a tracker."""
    variables = {*os.environ, *(parameters.cluster.get("environment") or {})}
    return bool(variables & set(TRACKER_VARIABLES))


def _of_serving(parameters: Parameters) -> list[str]:
    """How a cluster serves: replicas, GPUs, cores, memory."""
    given, usual = parameters.serving, ServingConfig()
    names = [field.name for field in dataclasses.fields(ServingConfig)]  # type: ignore[arg-type]
    return [
        f"serving.{name}"
        for name in names
        if name not in SERVING_EVERYWHERE and getattr(given, name) != getattr(usual, name)
    ]
