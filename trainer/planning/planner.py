"""From a model's dimensions, a number of contexts and parameters to a plan."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from trainer.planning import gates, lora_counts, memory_choice, memory_model, seconds
from trainer.planning.catalogue import Gpu, Prices, find_gpu
from trainer.planning.lora_counts import adapter_parameters
from trainer.planning.memory_model import GIB, Precision, Setting
from trainer.planning.model_shape import ModelShape
from trainer.planning.plan import Plan
from trainer.planning.setting_rules import process_problems
from trainer.planning.step_count import StepCount, few_steps, fewer_gradients
from trainer.planning.work import Machine, Place, Work, share


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
    trained_tokens: int | None = None,
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
        trained_tokens: Of an epoch, for chats and completions; None: all of each context.
        fetches: Whether the base model is still to come to the volume.
        correction: Measured over planned seconds of earlier runs of this kind.
    """
    place = place or Place()
    problems = gates.context_problems(shape, parameters)
    gpu, gpu_problems = _gpu(parameters, catalogue, place)
    problems += gpu_problems
    machine = Machine.of(parameters, gpu, place)
    if machine.is_own:
        processes = parameters["trainer_gpus"]
        problems += process_problems(processes, place.gpus, machine.cores)
    if num_train_contexts is None:
        num_train_contexts = share(num_contexts, parameters["train_ratio"])
    setting, gradients, setting_problems = _setting(shape, parameters, machine, num_train_contexts)
    if machine.is_known:  # else there is nothing that the model could fit
        problems += setting_problems + gates.settings_problems(parameters, machine)
    work = Work.of(
        shape, parameters, setting, gradients, num_contexts, num_train_contexts, fetches=fetches
    )
    steps_notes = [
        fewer_gradients(parameters["gradients"], gradients),
        few_steps(work.whole_steps, work.global_batch),
    ]
    return _plan(
        work,
        machine,
        prices,
        problems,
        estimated=estimated,
        trained_tokens=trained_tokens,
        correction=correction,
        now=place.now or datetime.now(UTC),
        notes=gates.sample_notes(shape, parameters) + [f"{note}." for note in steps_notes if note],
    )


def _gpu(
    parameters: Mapping[str, Any], catalogue: Mapping[str, Gpu], place: Place
) -> tuple[Gpu | None, list[str]]:
    if place.on_cpu or place.gpu is not None:
        return place.gpu, []
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
    shape: ModelShape, parameters: Mapping[str, Any], machine: Machine, num_train_contexts: int
) -> tuple[Setting, int, list[str]]:
    """The setting and the gradients that training will choose; the smallest, and why not, else."""
    gpu = machine.gpu
    processes = parameters["trainer_gpus"]
    optimizer = parameters.get("optimizer") or {}
    offload = optimizer.get("offload", "")
    asked = Setting(
        context=parameters["context"],
        texts=2 if (parameters.get("data") or {}).get("shape") == "preference" else 1,
        zero_stage=parameters["zero_stage"],
        processes=processes * machine.nodes,
        processes_per_node=processes,
        precision=_precision(parameters, gpu),
        trained_parameters=_trained(shape, parameters),
        **lora_counts.setting_of(parameters.get("lora")),
        adam_bits=optimizer.get("adam_bits", 32),
        on_gpu=gpu is not None,
    )
    memory_gib = gpu.memory_gib if gpu else machine.memory_gib / processes
    chosen, gradients = memory_choice.choose_with_steps(
        shape,
        asked,
        int(memory_gib * GIB),
        StepCount.of(parameters, num_train_contexts, asked.processes),
        batch_size=parameters["batch_size"],
        divisor=parameters["batch_size_divisor"],
        offload=offload,
    )
    if chosen is not None:
        return chosen, gradients, gates.host_problems(shape, chosen, machine)
    smallest = memory_choice.smallest(asked, batch_size=parameters["batch_size"], offload=offload)
    return smallest, gradients, [gates.does_not_fit(shape, smallest, machine, memory_gib)]


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
    return None if lora is None else adapter_parameters(shape, lora)


def _plan(
    work: Work,
    machine: Machine,
    prices: Prices,
    problems: list[str],
    *,
    estimated: bool,
    trained_tokens: int | None,
    correction: float,
    now: datetime,
    notes: list[str],
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
    per_hour = _per_hour(machine, prices)
    spot_per_hour = _per_hour(machine, prices, spot=True) if machine.gpu else None
    dollars = None if per_hour is None else per_hour * in_all
    gpu_parts, host_parts = _memory(shape, setting)
    return Plan(
        num_contexts=work.num_contexts,
        num_train_contexts=work.num_train_contexts,
        steps=work.steps,
        tokens=_tokens(work, setting, trained_tokens),
        batch_size=setting.batch_size,
        gradients=work.gradients,
        processes=setting.processes,
        zero_stage=setting.zero_stage,
        offload=setting.offload,
        checkpointed_layers=setting.recomputed(shape),
        layers=shape.layers,
        precision=setting.precision,
        parameters=shape.parameters,
        active_parameters=shape.active_parameters,
        trained_parameters=setting.trained_parameters,
        gpu=machine.gpu_name,
        on_cpu=machine.on_cpu,
        on_cluster=machine.on_cluster,
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
        replay_checkpoints=work.replay_checkpoints,
        mean_replay_hours=work.mean_replay_steps * sum(spent.values()) / 3600,
        free_gib=machine.free_gib,
        seconds_per_step=sum(spent.values()),
        seconds_parts=spent,
        hours=in_all,
        hours_parts=hours,
        dollars_per_hour=per_hour,
        dollars=dollars,
        spot_dollars_per_hour=spot_per_hour,
        spot_dollars=None if spot_per_hour is None else spot_per_hour * in_all,
        light_cores=machine.light_cores,
        light_memory_gib=machine.light_memory_gib,
        correction=correction,
        estimated=estimated,
        notes=notes,
        problems=problems
        + gates.work_problems(work, machine)
        + (
            gates.budget_problems(work.budget, machine.gpu_name, in_all, dollars, now)
            if machine.is_known
            else []
        ),
    )


def _per_hour(machine: Machine, prices: Prices, *, spot: bool = False) -> float | None:
    """Dollars an hour of all nodes; 0 for the user's own machine, None where there is no price."""
    if machine.is_own:
        return 0.0
    of_node = prices.per_hour(
        machine.gpu_name, machine.gpus, machine.cores, machine.memory_gib, spot=spot
    )
    return None if of_node is None else of_node * machine.nodes


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
        "validation": work.validations * of_held_out(setting),
        "checkpoints": work.saves * seconds.save_seconds(shape, setting, machine.gpu),
        "final model": seconds.finish_seconds(shape, setting),
        "evaluation": start + 2 * of_held_out(alone),  # base and final model, in one process
    }
    if setting.texts == 2:  # the base model sees each pair once before training
        parts["reference"] = correction * seconds.evaluation_seconds(
            shape, setting, machine.gpu, contexts=work.num_contexts, cores=machine.cores
        )
    return {name: part / 3600 for name, part in parts.items()}


def _memory(shape: ModelShape, setting: Setting) -> tuple[dict[str, float], dict[str, float]]:
    """GiB of a GPU and of a node's host, by part; processes on a CPU need host memory alone."""
    gpu = memory_model.gpu_parts(shape, setting) if setting.on_gpu else {}
    host = memory_model.host_parts(shape, setting)
    return _in_gib(gpu), _in_gib(host)


def _in_gib(parts: Mapping[str, int]) -> dict[str, float]:
    return {name: size / GIB for name, size in parts.items()}


def _tokens(work: Work, setting: Setting, trained_tokens: int | None) -> int:
    """Trained by the whole run; of chats, those of an epoch for each context that it trains."""
    if trained_tokens is None:
        return work.trained_contexts * setting.context * setting.texts
    return round(trained_tokens * work.trained_contexts / max(work.num_train_contexts, 1))
