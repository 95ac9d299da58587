"""What cannot work or is not wanted, before anything starts: each with the way out."""

import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from trainer.contract.wording import format_seconds, told_apart
from trainer.planning import memory_model
from trainer.planning.memory_choice import USABLE_SHARE
from trainer.planning.memory_model import GIB, Setting
from trainer.planning.model_shape import ModelShape
from trainer.planning.setting_rules import schedule_problems, setting_problems
from trainer.planning.work import Machine, Work


def context_problems(shape: ModelShape, parameters: Mapping[str, Any]) -> list[str]:
    context = parameters["context"]
    if shape.positions is None or context <= shape.positions:
        return []
    return [
        f"context is larger than the model takes (got {context}). "
        f"It has positions for {shape.positions} tokens. Set context={shape.positions} or less."
    ]


def sample_notes(shape: ModelShape, parameters: Mapping[str, Any]) -> list[str]:
    """Samples that will be shorter than asked: one token of the prompt stays at the least."""
    asked, positions = parameters["prompt_tokens"], shape.positions
    if positions is None or asked < positions or not parameters["prompt_samples"]:
        return []
    return [
        f"prompt_tokens is more than the model's positions hold beside a prompt (got {asked}): "
        f"samples have {most_sample_tokens(positions, asked)} tokens at most. "
        f"The model has positions for {positions}."
    ]


def most_sample_tokens(positions: int | None, asked: int) -> int:
    """`asked`, or what fits beside one token of prompt into the model's positions."""
    return max(1, min(asked, positions - 1)) if positions else asked


def does_not_fit(shape: ModelShape, smallest: Setting, machine: Machine, memory_gib: float) -> str:
    needed = memory_model.process_bytes(shape, smallest) / GIB
    usable = memory_gib * USABLE_SHARE
    ways = ["a larger trainer_gpu"] if machine.gpu else ["a machine with more memory"]
    if machine.on_cluster and not machine.gpu:
        ways = ["a larger trainer_ram"]
    if smallest.batch_size > 1:
        ways.append("batch_size=1 or -1")
    if smallest.zero_stage < 3:
        ways.append("zero_stage=3")
    if machine.gpu:
        ways.append("more trainer_gpus")
    if smallest.trained_parameters is None:
        ways.append("lora")
    where = f"the memory of {machine.gpu_name}" if machine.gpu else "this machine's memory"
    if machine.on_cluster and not machine.gpu:
        where = "trainer_ram"
    needs, limit = told_apart(needed, usable, digits=1)
    return (
        f"model does not fit {where} with any setting (got {needs} GiB at the least). "
        f"{limit} of {memory_gib:.1f} GiB can be planned with. "
        f"Take {', '.join(ways)}, or a smaller context or model."
    )


def settings_problems(parameters: Mapping[str, Any], machine: Machine) -> list[str]:
    optimizer, kernels = parameters["optimizer"], parameters["kernels"]
    return list(
        setting_problems(
            on_gpu=machine.gpu is not None,
            force_fp16=parameters["force_fp16"],
            precision=parameters["precision"],
            adam_bits=optimizer["adam_bits"],
            offload=optimizer["offload"],
            liger=kernels["liger"],
            compile=kernels["compile"],
            zero_stage=parameters["zero_stage"],
            processes=parameters["trainer_gpus"] * machine.nodes,
            base_bits=(parameters.get("lora") or {}).get("base_bits", 16),
        )
    )


def host_problems(shape: ModelShape, setting: Setting, machine: Machine) -> list[str]:
    needed = memory_model.host_bytes(shape, setting) / GIB
    if machine.gpu is None or needed <= machine.memory_gib:
        return []
    has, needs = told_apart(machine.memory_gib, needed)
    return [
        f"trainer_ram is too little (got {has} GiB). Training needs "
        f"{needs} GiB of host memory. Set trainer_ram={math.ceil(needed * 1.1)}, "
        "or take GPUs that hold the optimizer, or lora."
    ]


def work_problems(work: Work, machine: Machine) -> list[str]:
    problems = list(schedule_problems(work.steps, work.warmup_ratio, work.schedule))
    if work.num_train_contexts < work.global_batch:
        problems.append(
            f"dataset is too small (got {work.num_train_contexts} contexts to train on). One step "
            f"takes {work.global_batch}: batch_size {work.setting.batch_size} x gradients "
            f"{work.gradients} x {_processes(work.setting)}. "
            "Add text, or set context, batch_size or gradients lower."
        )
    needed = work.disk_bytes / GIB
    if machine.free_gib is not None and needed > machine.free_gib:
        free, needs = told_apart(machine.free_gib, needed, digits=1)
        problems.append(
            f"pvc has too little room (got {free} GiB free). {needs} GiB are "
            f"needed for {work.kept_checkpoints + 1} checkpoints, the final model"
            f"{', the base model' * work.fetches} and the tokens. "
            "Free or add space, or keep fewer checkpoints (checkpoints.keep_last)."
        )
    return problems


def _processes(setting: Setting) -> str:
    """How many train together, in the words of the parameters that say so."""
    nodes = setting.processes // setting.processes_per_node
    return f"trainer_gpus {setting.processes_per_node}" + f" x cluster.nodes {nodes}" * (nodes > 1)


def budget_problems(
    budget: Mapping[str, Any], gpu: str, hours: float, dollars: float | None, now: datetime
) -> list[str]:
    """Limits that the run is planned to exceed, or that can't be kept.

    Args:
        dollars: None: there is no price for `gpu`.
    """
    problems = []
    other = ", on another trainer_gpu" if gpu else ""
    mend = f"Train on less (sampling, epochs){other}, or raise it."
    if (most := budget.get("max_dollars")) and dollars is None:
        problems.append(
            f"budget.max_dollars can't be kept (got {most}). {gpu} has no price in the file of "
            "prices: trainer/planning/prices.yaml, or the one that FINETUNE_PRICES names. "
            "Add it there, or leave max_dollars out."
        )
    elif most and dollars is not None and dollars > most:
        problems.append(
            f"budget.max_dollars is too little (got {most}). "
            f"The run is planned to cost {told_apart(most, dollars, digits=2)[1]}. {mend}"
        )
    if (most := budget.get("max_hours")) and hours > most:
        problems.append(
            f"budget.max_hours is too little (got {most}). "
            f"The run is planned to take {_in_hours(hours)}. {mend}"
        )
    if deadline := budget.get("deadline"):
        done = now + timedelta(hours=hours)
        if done > _moment(deadline):
            problems.append(
                f"budget.deadline is too early (got {deadline}). "
                f"The run is planned to be done at {done.isoformat(timespec='minutes')}. {mend}"
            )
    return problems


def _in_hours(hours: float) -> str:
    digits = f"{hours:,.1f}" if hours >= 10 else f"{hours:.2g}"
    return f"{digits} hours ({format_seconds(3600 * hours)})"


def _moment(value: Any) -> datetime:
    """A point in time; one without a zone is UTC."""
    moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
