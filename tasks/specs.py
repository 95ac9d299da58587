"""What the backend is told of each step: plain data in, plain data out. Loads no Prefect."""

from collections.abc import Mapping
from typing import Any

from infra.backend import Resources, Seen, StepSpec
from trainer.contract.image_reference import image_of
from trainer.contract.parameter_types import NO_GPU
from trainer.contract.work_key import work_key

LIGHT = Resources(light=True)  # steps that only read, hash and encode


def step_spec(
    parameters: Mapping[str, Any],
    step: str,
    config: Mapping[str, Any],
    *,
    attempt: str = "",
    nodes: int = 1,
    seen: Seen | None = None,
) -> StepSpec:
    """The step as a piece of work, named by everything that it reads."""
    light = step in ("plan", "fetch", "tokenize", "deploy") or config.get("action") in (
        "look",
        "record",
    )
    light = light or (step == "again" and config.get("command") in ("plan", "begin"))
    return StepSpec(
        step=step,
        run_name=parameters["run_name"],
        volume=parameters["pvc"],
        config=config,
        key=work_key(step, config),
        attempt=attempt,
        resources=LIGHT if light else _trainer(parameters, nodes if step == "finetune" else 1),
        image=image_of(parameters["finetuner_image"], parameters["finetuner_tag"]),
        region=parameters["region"],
        secrets=_secrets(parameters, step, config),
        seen=seen,
    )


def _secrets(
    parameters: Mapping[str, Any], step: str, config: Mapping[str, Any]
) -> tuple[str, ...]:
    """Kubernetes Secrets whose entries the step gets as environment variables."""
    named = ""
    if step == "finetune":
        named = parameters["wandb_key"]
    elif config.get("api_key_variable"):  # it asks a server that wants its key
        named = config["serving"]["api_key"]
    return (named,) if named else ()


def _trainer(parameters: Mapping[str, Any], nodes: int) -> Resources:
    gpu = parameters["trainer_gpu"]
    return Resources(
        # Without a class no GPU is requested: `gpus` are then processes on the CPUs.
        gpu="" if gpu == NO_GPU else gpu,
        gpus=parameters["trainer_gpus"],
        cores=parameters["trainer_cores"],
        memory_gib=parameters["trainer_ram"],
        nodes=nodes,
    )
