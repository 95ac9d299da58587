"""How a model is spread over processes and memory, and what DeepSpeed is told of it."""

from dataclasses import dataclass, field
from typing import Any

import torch

from trainer.planning.memory_model import Precision
from trainer.training.engine.adam import AdamOptions


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How a model is spread over processes and memory."""

    rank: int
    world: int
    batch_size: int
    zero_stage: int
    precision: Precision
    offload: bool = False
    checkpointed_layers: int | None = 0
    """Layers that are computed again in the backward pass, the first ones; None: all."""
    compile: bool = False
    """Have torch.compile write the layers' code: takes micro-batches of one shape alone."""
    liger: bool = False
    """Take Liger's kernels."""
    deterministic: bool = True
    """On a GPU take kernels whose sums are always in one order."""
    adam_bits: int = 32
    """Of Adam's moments: 32, or 8 in blocks."""
    adam: AdamOptions = field(default_factory=AdamOptions)
    packed: bool = False
    """Rows hold several texts, which takes attention a mask."""
    beta: float = 0.0
    """Of DPO, where contexts are pairs of answers; 0: they are text."""


def sends_meanwhile(options: EngineOptions) -> bool:
    """Whether gradients are sent while the backward pass continues: on several GPUs.

    DeepSpeed 0.19 refuses it at stage 1 where we say when a step is complete; there all gradients
    are sent once, after the last micro-batch.
    """
    return torch.cuda.is_available() and options.world > 1 and options.zero_stage >= 2


def deepspeed_config(options: EngineOptions) -> dict[str, Any]:
    """What DeepSpeed is told."""
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": options.batch_size,
        "gradient_accumulation_steps": 1,
        # `Engine.step` says when a step is complete: the last of an epoch has fewer batches.
        "managed_gradient_accumulation": False,
        "gradient_clipping": 0.0 if options.zero_stage == 0 else options.adam.clip,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
        "bf16": {"enabled": options.precision == "bf16", "check_grad_overflow": True},
        "fp16": {"enabled": options.precision == "fp16"},
        "zero_optimization": {
            "stage": options.zero_stage,
            "overlap_comm": sends_meanwhile(options),
        },
    }
    if options.offload:
        config["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    return config
