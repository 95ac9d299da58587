"""`batch_size=-1`: the batch size that fits this machine's memory, and how.

The memory model proposes; on a GPU a real step then has to fit, or less is tried.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from trainer.config import FinetuneConfig
from trainer.errors import DoesNotFitError, RequestError

CPU_BATCH = 4  # more gains nothing without a GPU, and makes fewer, coarser steps


@dataclass(frozen=True, kw_only=True)
class Sizing:
    """How much of the work is done at once."""

    batch_size: int
    gradient_checkpointing: bool = False
    offload: bool = False
    reason: str = "as asked"


def size_up(config: FinetuneConfig, model: Path, context: int) -> Sizing:
    """The batch size asked for, or the largest that fits by the memory model.

    Args:
        model: The base model's folder.
        context: Tokens of a context.
    """
    if config.batch_size > 0:
        return Sizing(batch_size=config.batch_size)
    if not has_gpu():
        reason = f"batch_size {CPU_BATCH}, as always without a GPU"
        return Sizing(batch_size=CPU_BATCH, reason=reason)
    return fit(config, model, context, *_gpu(config))


def has_gpu() -> bool:
    return Path("/proc/driver/nvidia").exists()  # torch would take seconds to say so


def confirmed(sizing: Sizing, attempt: Callable[[Sizing], float | None]) -> Sizing:
    """The first of ever smaller sizings with which a real step fits.

    Args:
        sizing: What the memory model proposes.
        attempt: Does a real step; returns the GiB it took, where that is known, or raises
            DoesNotFitError.
    Raises:
        RequestError: Not even the smallest fits.
    """
    tried = sizing
    while True:
        try:
            peak_gib = attempt(tried)
        except DoesNotFitError as error:
            smaller = _smaller(tried)
            if smaller is None:
                raise RequestError(str(error)) from error
            tried = smaller
            continue
        took = "" if peak_gib is None else f", {peak_gib:.1f} GiB at its peak"
        means = {"gradient checkpointing": tried.gradient_checkpointing, "offload": tried.offload}
        how = "".join(f" with {name}" for name, used in means.items() if used)
        reason = f"{sizing.reason}; a real step fits at batch_size {tried.batch_size}{how}{took}"
        return replace(tried, reason=reason)


def _smaller(sizing: Sizing) -> Sizing | None:
    """What takes the next less memory, and costs the next more time."""
    if sizing.batch_size > 1:
        return replace(sizing, batch_size=sizing.batch_size // 2)
    if not sizing.gradient_checkpointing:
        return replace(sizing, gradient_checkpointing=True)
    if not sizing.offload:
        return replace(sizing, offload=True)
    return None


def fit(
    config: FinetuneConfig, model: Path, context: int, capacity_bytes: float, element_bytes: int
) -> Sizing:
    """The least costly way to fit into `capacity_bytes` of each process."""
    from trainer.models import load_config
    from trainer.training.memory import MemoryNeed, choose, need_of, shape_of

    shape = shape_of(load_config(model, config.trust_remote_code), config.lora)

    def need(batch_size: int, gradient_checkpointing: bool, offload: bool) -> MemoryNeed:
        return need_of(
            shape,
            batch_size,
            context,
            world=config.processes * config.nodes,
            zero_stage=config.zero_stage,
            element_bytes=element_bytes,
            gradient_checkpointing=gradient_checkpointing,
            offload=offload,
        )

    try:
        choice = choose(need, capacity_bytes, config.batch_size_divisor)
    except ValueError as error:
        raise RequestError(str(error)) from error
    return Sizing(
        batch_size=choice.batch_size,
        gradient_checkpointing=choice.gradient_checkpointing,
        offload=choice.offload,
        reason=choice.reason,
    )


def _gpu(config: FinetuneConfig) -> tuple[float, int]:
    """Memory of a GPU in bytes, less what CUDA itself takes, and bytes of a weight in use."""
    import torch

    from trainer.training.process import choose_precision

    precision = choose_precision(config.precision, config.force_fp16)
    memory = torch.cuda.get_device_properties(0).total_memory - 2**30
    return float(memory), 4 if precision == "fp32" else 2
