"""How much of the work is done at once: the micro-batch that fits this machine's memory, and how.

The memory model proposes; on a GPU a real step then has to fit, or less is tried.
"""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trainer.contract.errors import DoesNotFitError, RequestError
from trainer.contract.json_text import parse_json
from trainer.contract.step_configs import FinetuneConfig
from trainer.devices import devices, has_gpu
from trainer.parameter_counts import shape_of
from trainer.planning import lora_counts, memory_choice
from trainer.planning.lora_counts import adapter_parameters
from trainer.planning.memory_model import GIB, Precision, Setting, process_bytes
from trainer.planning.model_shape import ModelShape
from trainer.planning.step_count import StepCount, fewer_gradients


@dataclass(frozen=True, kw_only=True)
class Sizing:
    """How much of the work is done at once."""

    batch_size: int
    checkpointed_layers: int | None = 0
    """Layers computed again in the backward pass, the first ones; None: all."""
    offload: bool = False
    gradients: int = 0
    """Micro-batches a step; 0: as asked."""
    reason: str = "as asked"

    def to_record(self) -> dict[str, Any]:
        """What run.json says about it."""
        record = asdict(self)
        if not self.gradients:
            del record["gradients"]
        return record


def size_up(
    config: FinetuneConfig, model: Path, context: int, num_contexts: int, texts: int = 1
) -> Sizing:
    """The batch size asked for, or one that fits, and the least costly way to fit it.

    One that is worked out keeps the device busy, and leaves enough steps (planning/step_count.py).

    Args:
        model: The base model's folder.
        context: Tokens of a context.
        num_contexts: Of an epoch.
        texts: Of each context: see Setting.
    Raises:
        RequestError: Nothing fits the GPU.
    """
    if has_gpu():
        return fit(config, model, context, num_contexts, *_gpu(config), texts=texts)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // config.processes
    best = _precision(config, "fp32")
    return fit(config, model, context, num_contexts, memory, best, on_gpu=False, texts=texts)


def confirmed(
    config: FinetuneConfig, sizing: Sizing, attempt: Callable[[Sizing], float | None]
) -> Sizing:
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
            smaller = _smaller(config, tried)
            if smaller is None:
                raise RequestError(str(error)) from error
            tried = smaller
            continue
        took = "" if peak_gib is None else f", {peak_gib:.1f} GiB at its peak"
        reason = f"{sizing.reason}; a real step fits at {_in_words(tried)}{took}"
        return replace(tried, reason=reason)


def _smaller(config: FinetuneConfig, sizing: Sizing) -> Sizing | None:
    """What takes the next less memory, and costs the next more time."""
    if sizing.batch_size > 1 and config.batch_size < 0:
        return replace(sizing, batch_size=sizing.batch_size // 2)
    if sizing.checkpointed_layers is not None:
        return replace(sizing, checkpointed_layers=None)
    if not sizing.offload and not config.optimizer.offload and config.optimizer.adam_bits == 32:
        return replace(sizing, offload=True)
    return None


def fit(
    config: FinetuneConfig,
    model: Path,
    context: int,
    num_contexts: int,
    memory_bytes: int,
    precision: Precision,
    on_gpu: bool = True,
    texts: int = 1,
) -> Sizing:
    """The least costly way to fit into `memory_bytes` of each process."""
    described = parse_json((model / "config.json").read_text(encoding="utf-8"))
    try:
        shape = shape_of(described, Path(config.volume), lora=config.lora)
    except ValueError as error:
        if config.batch_size > 0:
            return Sizing(batch_size=config.batch_size)
        raise RequestError(f"batch_size can't be worked out: {error}") from error
    asked = replace(_asked(config, shape, context, precision, on_gpu), texts=texts)
    count = StepCount(
        contexts=num_contexts,
        epochs=config.epochs,
        processes=asked.processes,
        gradients=config.gradients,
        max_steps=config.schedule.max_steps,
    )
    chosen, gradients = memory_choice.choose_with_steps(
        shape,
        asked,
        memory_bytes,
        count,
        batch_size=config.batch_size,
        divisor=config.batch_size_divisor,
        offload=config.optimizer.offload,
    )
    room = memory_bytes * memory_choice.USABLE_SHARE / GIB
    if chosen is None:
        chosen = memory_choice.smallest(
            asked, batch_size=config.batch_size, offload=config.optimizer.offload
        )
        least = process_bytes(shape, chosen) / GIB
        if on_gpu:
            raise RequestError(
                f"batch_size {chosen.batch_size} needs {least:.1f} GiB of a GPU at the least "
                f"(got {room:.1f} that can be planned with). Take a smaller batch_size, a shorter "
                "context, more GPUs, or a larger one."
            )
    sizing = Sizing(
        batch_size=chosen.batch_size,
        checkpointed_layers=chosen.checkpointed_layers,
        offload=chosen.offload,
        gradients=gradients if gradients < config.gradients else 0,
    )
    needed = process_bytes(shape, chosen) / GIB
    reason = f"{_in_words(sizing)} needs {needed:.2f} of {room:.2f} GiB"
    if fewer := fewer_gradients(config.gradients, gradients):
        reason += f"; {fewer}"
    return replace(sizing, reason=reason)


def _asked(
    config: FinetuneConfig, shape: ModelShape, context: int, precision: Precision, on_gpu: bool
) -> Setting:
    """What is given before anything is chosen."""
    lora = None if config.lora is None else asdict(config.lora)  # type: ignore[call-overload]
    return Setting(
        context=context,
        zero_stage=config.zero_stage,
        processes=config.processes * config.nodes,
        processes_per_node=config.processes,
        precision=precision,
        trained_parameters=None if lora is None else adapter_parameters(shape, lora),
        **lora_counts.setting_of(lora),
        adam_bits=config.optimizer.adam_bits,
        on_gpu=on_gpu,
    )


def _in_words(sizing: Sizing) -> str:
    layers = sizing.checkpointed_layers
    ways = [] if layers == 0 else [f"{'all' if layers is None else layers} layers computed again"]
    ways += ["the optimizer in host memory"] if sizing.offload else []
    return f"batch_size {sizing.batch_size}" + (f" with {' and '.join(ways)}" if ways else "")


def _gpu(config: FinetuneConfig) -> tuple[int, Precision]:
    """Memory of a GPU in bytes, and the precision of weights in use."""
    smallest = min(devices(), key=lambda device: device.memory_gib)
    best: Precision = "bf16" if smallest.bf16 else "fp16"
    return int(smallest.memory_gib * GIB), _precision(config, best)


def _precision(config: FinetuneConfig, best: Precision) -> Precision:
    return "fp16" if config.force_fp16 else config.precision or best
