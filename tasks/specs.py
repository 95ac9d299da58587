"""What the backend is told of each step: plain data in, plain data out. Loads no Prefect."""

from collections.abc import Mapping
from typing import Any

from infra.backend import Resources, StepSpec, work_key
from tasks.configs import NOT_DEFINING

# Steps that only read, hash and encode.
LIGHT = Resources(cores=4, memory_gib=8)


def step_spec(
    parameters: Mapping[str, Any],
    step: str,
    config: Mapping[str, Any],
    *,
    attempt: str = "",
    nodes: int = 1,
) -> StepSpec:
    """The step as a piece of work, named by what its config says of it."""
    light = step in ("plan", "fetch", "tokenize", "deploy") or config.get("action") in (
        "look",
        "record",
    )
    return StepSpec(
        step=step,
        run_name=parameters["run_name"],
        volume=parameters["pvc"],
        config=config,
        key=work_key(config, without=NOT_DEFINING),
        attempt=attempt,
        resources=LIGHT if light else _trainer(parameters, nodes if step == "finetune" else 1),
        image=f"{parameters['finetuner_image']}:{parameters['finetuner_tag']}",
        region=parameters["region"],
        secrets=_keys(parameters) if step == "finetune" else (),
    )


def _keys(parameters: Mapping[str, Any]) -> tuple[str, ...]:
    return (parameters["wandb_key"],) if parameters["wandb_key"] else ()


def _trainer(parameters: Mapping[str, Any], nodes: int) -> Resources:
    return Resources(
        gpu=parameters["trainer_gpu"],
        gpus=parameters["trainer_gpus"],
        cores=parameters["trainer_cores"],
        memory_gib=parameters["trainer_ram"],
        nodes=nodes,
    )
