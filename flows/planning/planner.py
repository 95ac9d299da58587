"""From a model's dimensions, a number of contexts and parameters to a plan."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from flows.planning import gates, seconds
from flows.planning.result import Plan
from flows.planning.work import Machine, Place, Work
from infra.catalogue import Gpu, Prices, find_gpu
from trainer import memory_choice, memory_model
from trainer.memory_model import GIB, Precision, Setting
from trainer.model_shape import ModelShape, adapter_parameters
from trainer.topics import LoraConfig


def plan(
    shape: ModelShape,
    num_contexts: int,
    parameters: Mapping[str, Any],
    *,
    catalogue: Mapping[str, Gpu],
    prices: Prices,
    place: Place | None = None,
    num_train_contexts: int | None = None,
    estimated: bool = False,
    fetches: bool = False,
    correction: float = 1.0,
) -> Plan:
    """Plan a run.

    Args:
        shape: The base model's dimensions.
        num_contexts: Contexts of the dataset, the held-out ones with them.
        parameters: The flow's parameters, all of them; topics (`checkpoints`, `budget`) may lack.
        catalogue: GPU classes by name.
        prices: Dollars an hour.
        place: The machine, where it is not what the parameters ask for.
        num_train_contexts: Those not held out, where a store says so; None: by `train_ratio`.
        estimated: Whether `num_contexts` is an estimate.
        fetches: Whether the base model is still to come to the volume.
        correction: Measured over planned seconds of earlier runs of this kind.
    """
    place = place or Place()
    problems = gates.context_problems(shape, parameters)
    gpu, gpu_problems = _gpu(parameters, catalogue, place)
    problems += gpu_problems
    machine = Machine.of(parameters, gpu, place)
    setting, setting_problems = _setting(shape, parameters, machine)
    if machine.is_known:  # else there is nothing that the model could fit
        problems += setting_problems + gates.settings_problems(parameters, machine)
    return _plan(
        Work.of(shape, parameters, setting, num_contexts, num_train_contexts, fetches=fetches),
        machine,
        prices,
        problems,
        estimated=estimated,
        correction=correction,
        now=place.now or datetime.now(UTC),
    )


def _gpu(
    parameters: Mapping[str, Any], catalogue: Mapping[str, Gpu], place: Place
) -> tuple[Gpu | None, list[str]]:
    if place.on_cpu:
        return None, []
    name, asked = parameters["trainer_gpu"], parameters["trainer_gpus"]
    try:
        gpu = find_gpu(catalogue, name)
    except ValueError as error:
        return None, [str(error)]
    if asked > gpu.most_per_node:
        return gpu, [
            f"trainer_gpus is more than a node has (got {asked} of {name}). "
            f"The most is {gpu.most_per_node}. Take fewer, or another trainer_gpu."
        ]
    return gpu, []


def _setting(
    shape: ModelShape, parameters: Mapping[str, Any], machine: Machine
) -> tuple[Setting, list[str]]:
    """The setting that training will choose; the smallest one, and why not, if none fits."""
    gpu = machine.gpu
    processes = parameters["trainer_gpus"]
    optimizer = parameters.get("optimizer") or {}
    offload = optimizer.get("offload", "")
    asked = Setting(
        context=parameters["context"],
        zero_stage=parameters["zero_stage"],
        processes=processes * machine.nodes,
        processes_per_node=processes,
        precision=_precision(parameters, gpu),
        trained_parameters=_trained(shape, parameters),
        adam_bits=optimizer.get("adam_bits", 32),
        on_gpu=gpu is not None,
    )
    memory_gib = gpu.memory_gib if gpu else machine.memory_gib / processes
    chosen = memory_choice.choose(
        shape,
        asked,
        int(memory_gib * GIB),
        batch_size=parameters["batch_size"],
        divisor=parameters["batch_size_divisor"],
        offload=offload,
    )
    if chosen is not None:
        return chosen, gates.host_problems(shape, chosen, machine)
    smallest = memory_choice.smallest(asked, batch_size=parameters["batch_size"], offload=offload)
    return smallest, [gates.does_not_fit(shape, smallest, machine, memory_gib)]


def _precision(parameters: Mapping[str, Any], gpu: Gpu | None) -> Precision:
    """As training chooses it: trainer/training/process.py."""
    if parameters["force_fp16"]:
        return "fp16"
    return parameters.get("precision") or (
        "fp32" if gpu is None else "bf16" if gpu.bf16 else "fp16"
    )


def _trained(shape: ModelShape, parameters: Mapping[str, Any]) -> int | None:
    """Of LoRA's adapters; None: all of the model's weights are trained."""
    lora = parameters.get("lora")
    if lora is None:
        return None
    return adapter_parameters(
        shape, lora.get("rank", LoraConfig.rank), lora.get("target_modules", ())
    )


def _plan(
    work: Work,
    machine: Machine,
    prices: Prices,
    problems: list[str],
    *,
    estimated: bool,
    correction: float,
    now: datetime,
) -> Plan:
    shape, setting = work.shape, work.setting
    spent = {
        name: part * correction
        for name, part in seconds.step_seconds(
            shape, setting, machine.gpu, gradients=work.gradients, cores=machine.cores
        ).items()
    }
    hours = _hours(work, machine, sum(spent.values()), correction)
    in_all = sum(hours.values())
    per_hour = (
        prices.per_hour(machine.gpu_name, machine.gpus, machine.cores, machine.memory_gib)
        if machine.gpu
        else 0.0
    )
    if per_hour is not None:
        per_hour *= machine.nodes
    dollars = None if per_hour is None else per_hour * in_all
    gpu_parts, host_parts = _memory(shape, setting)
    return Plan(
        num_contexts=work.num_contexts,
        num_train_contexts=work.num_train_contexts,
        steps=work.steps,
        tokens=work.num_train_contexts * setting.context * work.epochs,
        batch_size=setting.batch_size,
        gradients=work.gradients,
        processes=setting.processes,
        zero_stage=setting.zero_stage,
        offload=setting.offload,
        checkpointed_layers=setting.recomputed(shape),
        layers=shape.layers,
        precision=setting.precision,
        parameters=shape.parameters,
        gpu=machine.gpu_name,
        on_cpu=machine.on_cpu,
        nodes=machine.nodes,
        cores=machine.cores,
        gpu_memory_gib=sum(gpu_parts.values()),
        gpu_memory_parts_gib=gpu_parts,
        gpu_memory_limit_gib=machine.gpu.memory_gib if machine.gpu else 0.0,
        host_memory_gib=sum(host_parts.values()),
        host_memory_parts_gib=host_parts,
        host_memory_limit_gib=machine.memory_gib,
        checkpoint_gib=memory_model.checkpoint_bytes(shape, setting.trained_parameters) / GIB,
        disk_gib=work.disk_bytes / GIB,
        free_gib=machine.free_gib,
        seconds_per_step=sum(spent.values()),
        seconds_parts=spent,
        hours=in_all,
        hours_parts=hours,
        dollars_per_hour=per_hour,
        dollars=dollars,
        correction=correction,
        estimated=estimated,
        problems=problems
        + gates.work_problems(work, machine)
        + (
            gates.budget_problems(work.budget, machine.gpu_name, in_all, dollars, now)
            if machine.is_known
            else []
        ),
    )


def _hours(
    work: Work, machine: Machine, step_seconds: float, correction: float
) -> dict[str, float]:
    """Hours for which the trainer's machine is held, by what they are spent on."""
    shape, setting, held_out = work.shape, work.setting, work.num_contexts - work.num_train_contexts

    def of_held_out(setting: Setting) -> float:
        return correction * seconds.evaluation_seconds(
            shape, setting, machine.gpu, contexts=held_out, cores=machine.cores
        )

    start = seconds.start_seconds(shape, setting)
    alone = replace(setting, processes=1, processes_per_node=1)
    parts = {
        "start": start,
        "steps": work.steps * step_seconds,
        "validation": work.saves * of_held_out(setting),
        "checkpoints": work.saves * seconds.save_seconds(shape, setting, machine.gpu),
        "final model": seconds.finish_seconds(shape, setting),
        "evaluation": start + 2 * of_held_out(alone),  # base and final model, in one process
    }
    return {name: part / 3600 for name, part in parts.items()}


def _memory(shape: ModelShape, setting: Setting) -> tuple[dict[str, float], dict[str, float]]:
    """GiB of a GPU and of a node's host, by part; processes on a CPU need host memory alone."""
    gpu = memory_model.gpu_parts(shape, setting) if setting.on_gpu else {}
    host = memory_model.host_parts(shape, setting)
    return _in_gib(gpu), _in_gib(host)


def _in_gib(parts: Mapping[str, int]) -> dict[str, float]:
    return {name: size / GIB for name, size in parts.items()}
