"""Which parameters were set and choose nothing where the run is: they are said, not ignored."""

import dataclasses

from flows.parameters import Parameters
from trainer.topics import ServingConfig

# Where steps are processes of this machine, these choose nothing.
OF_CLUSTERS = (
    "region trainer_gpu trainer_cores trainer_ram inference_gpu finetuner_image finetuner_tag "
    "cluster"
).split()
SERVING_EVERYWHERE = ("max_regression", "engine", "tensorizer_uri")
# Anywhere the one on the left chooses nothing while the one on the right is empty.
NEEDS = {"prompt_every": "prompt_file", "project_id": "wandb_key"}


def without_effect(parameters: Parameters, *, on_cluster: bool) -> list[str]:
    """Parameters that were set and choose nothing, by the names that a user typed."""
    fields = Parameters.model_fields
    set_names = [n for n in (*OF_CLUSTERS, *NEEDS) if getattr(parameters, n) != fields[n].default]
    found = [
        f"{name} (without {NEEDS[name]})"
        for name in set_names
        if name in NEEDS and not getattr(parameters, NEEDS[name])
    ]
    if on_cluster:
        return found
    return [name for name in set_names if name in OF_CLUSTERS] + _of_serving(parameters) + found


def _of_serving(parameters: Parameters) -> list[str]:
    """How a cluster serves: replicas, GPUs, cores, memory."""
    given, usual = parameters.serving, ServingConfig()
    names = [field.name for field in dataclasses.fields(ServingConfig)]  # type: ignore[arg-type]
    return [
        f"serving.{name}"
        for name in names
        if name not in SERVING_EVERYWHERE and getattr(given, name) != getattr(usual, name)
    ]
