"""The cheapest setting of training that fits into memory, by memory_model.py."""

import math
from dataclasses import replace
from typing import Literal

from trainer.planning.memory_model import Setting, process_bytes
from trainer.planning.model_shape import ModelShape
from trainer.planning.step_count import StepCount

Offload = Literal["", "never", "always"]

USABLE_SHARE = 0.85  # of a GPU: beyond it one odd batch ends the run
SATURATING_TOKENS = 8192  # in a micro-batch: a larger one makes no GPU faster
CPU_BATCH = 4  # more gains nothing without a GPU, and makes fewer, coarser steps


def choose(
    shape: ModelShape,
    setting: Setting,
    memory_bytes: int,
    *,
    batch_size: int = -1,
    divisor: float = 1.0,
    offload: Offload = "",
) -> Setting | None:
    """The least costly way that fits: no offload before offload, then little recomputing.

    Args:
        shape: The model.
        setting: What is given: context, ZeRO stage, processes, precision.
        memory_bytes: Of one GPU, whole, or a CPU process' part of the host's memory;
            USABLE_SHARE of it is planned with.
        batch_size: Contexts in a micro-batch; -1: as many as fit and make it faster.
        divisor: Divides a batch size that was worked out (`batch_size_divisor`).
        offload: Whether to; '' is where nothing else fits a GPU.
    Returns:
        `setting` with batch size, offload and checkpointed layers; None: nothing fits.
    """
    room = int(memory_bytes * USABLE_SHARE)
    saturating = SATURATING_TOKENS // (setting.context * setting.texts)
    most = max(1, saturating) if setting.on_gpu else CPU_BATCH
    sizes = [batch_size] if batch_size > 0 else range(most, 0, -1)
    for offloaded in _offload_ways(setting, offload):
        for size in sizes:
            tried = replace(setting, batch_size=size, offload=offloaded, checkpointed_layers=None)
            if process_bytes(shape, tried) > room:
                continue
            if batch_size < 0:
                tried = replace(tried, batch_size=max(1, math.floor(size / divisor)))
            return _with_least_recomputing(shape, tried, room)
    return None


def choose_with_steps(
    shape: ModelShape,
    setting: Setting,
    memory_bytes: int,
    count: StepCount,
    *,
    batch_size: int = -1,
    divisor: float = 1.0,
    offload: Offload = "",
) -> tuple[Setting | None, int]:
    """As `choose`, with a batch that leaves enough steps where it is worked out.

    Args:
        count: What the number of steps depends on.
    Returns:
        The setting, and the micro-batches of a step.
    """
    chosen = choose(
        shape, setting, memory_bytes, batch_size=batch_size, divisor=divisor, offload=offload
    )
    if chosen is None or batch_size > 0 or not count.contexts:
        return chosen, count.gradients
    size, gradients = count.enough(chosen.batch_size)
    if size < chosen.batch_size:  # it may need less recomputing, or no offload
        chosen = choose(shape, setting, memory_bytes, batch_size=size, offload=offload)
    return chosen, gradients


def smallest(setting: Setting, *, batch_size: int, offload: Offload) -> Setting:
    """What takes the least memory of all that `choose` tries."""
    offloaded = _offload_ways(setting, offload)[-1]
    return replace(setting, batch_size=max(1, batch_size), offload=offloaded)


def _offload_ways(setting: Setting, asked: Offload) -> tuple[bool, ...]:
    """Whether the optimizer may be kept in host memory, the cheaper way first."""
    if asked or setting.adam_bits == 8:
        return (asked == "always",)
    return (False, True) if setting.on_gpu and setting.zero_stage > 0 else (False,)


def _with_least_recomputing(shape: ModelShape, setting: Setting, room: int) -> Setting:
    settings = (replace(setting, checkpointed_layers=n) for n in range(shape.layers + 1))
    return next(tried for tried in settings if process_bytes(shape, tried) <= room)
