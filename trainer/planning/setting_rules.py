"""Settings of training that clash, or that this kind of machine has nothing for.

Pure, and light: the planner refuses them before anything starts, the finetune step where it runs.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any


def setting_problems(
    *,
    on_gpu: bool,
    force_fp16: bool,
    precision: str,
    adam_bits: int,
    offload: str,
    liger: bool,
    compile: bool,
    zero_stage: int,
    processes: int,
    base_bits: int = 16,
) -> Iterator[str]:
    """What stands in the way, a sentence each, with the way out."""
    if (force_fp16 or precision == "fp16") and not on_gpu:
        name = "force_fp16" if force_fp16 else "precision"
        mend = "Leave it out" if force_fp16 else "Take bf16 or fp32"
        yield (
            f"{name} asks for fp16, which DeepSpeed trains on a GPU alone (got no GPU). "
            f"{mend} here."
        )
    if adam_bits == 8 and offload == "always":
        yield (
            "optimizer.adam_bits=8 can't be combined with offload='always': that Adam runs on the "
            "GPU alone. Set adam_bits=32, or leave offload out."
        )
    if liger and not on_gpu:
        yield ("kernels.liger needs a GPU (got no GPU). Leave it out here, or try kernels.compile.")
    if compile and base_bits == 4:
        yield (
            "kernels.compile can't compile layers in 4 bits (got lora.base_bits=4). Leave one of "
            "them out."
        )
    if compile and zero_stage == 3 and processes > 1:
        yield (
            "kernels.compile can't compile layers whose weights are spread (got zero_stage 3 over "
            f"{processes} processes). Take zero_stage 2, or leave it out."
        )


def process_problems(processes: int, gpus: int, cores: int) -> Iterator[str]:
    """More training processes on a node than it has devices for.

    Args:
        processes: `trainer_gpus`.
        gpus: That torch can use on the node; 0: it trains on the CPU.
        cores: That a process may use.
    """
    if gpus and processes > gpus:
        yield (
            f"trainer_gpus is more than this machine has (got {processes}). It has {gpus} "
            f"GPU{'s' * (gpus > 1)}. Set trainer_gpus={gpus} or less."
        )
    elif not gpus and processes > cores:
        yield (
            f"trainer_gpus is more than this machine can run (got {processes}). It has no GPU, so "
            f"each is a process on the CPU, which has {cores} core{'s' * (cores > 1)}. "
            f"Set trainer_gpus={cores} or less."
        )


def schedule_problems(
    steps: int, warmup_ratio: float, schedule: Mapping[str, Any]
) -> Iterator[str]:
    """A curve of the learning rate that a run's steps have no room for."""
    warmup = schedule.get("warmup_steps", 0)
    if warmup > steps:
        yield (
            f"schedule.warmup_steps is more than the run has (got {warmup} of {steps:,} steps). "
            "The rate would never be learn_rate. Take fewer, or more epochs."
        )
    elif schedule.get("kind") == "wsd":
        ratio = schedule.get("decay_ratio", 0.2)
        warmup = warmup or math.ceil(steps * warmup_ratio)
        if warmup + math.floor(steps * ratio) > steps:
            yield (
                f"schedule.decay_ratio leaves no step between warm-up and decay (got {ratio} of "
                f"{steps:,} steps, {warmup} of them warm-up). Take a shorter warm-up or decay."
            )
