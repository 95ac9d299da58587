"""Small things that the training processes count and record."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from trainer.training.engine.engine import Engine
from trainer.training.engine.partitions import optimizer_state

_MASK = 2**64 - 1


def finite(value: float) -> float | None:
    """The number, or None where JSON has none for it."""
    return value if math.isfinite(value) else None


def left_out_fields(whole: int, kept: int, *, updates: bool) -> dict[str, Any]:
    """What a step's line in metrics.jsonl says of contexts that `skip` leaves out.

    Args:
        whole: Contexts of the step, and
        kept: those that are trained on. The loss is a mean over their tokens alone.
        updates: False: nothing is left, so the step changes no weight and no moment.
    """
    if whole == kept:
        return {}
    return {"left_out": whole - kept, **({} if updates else {"without_update": True})}


def reward_fields(
    engine: Engine, rewards: Sequence[torch.Tensor | None], pairs: int
) -> dict[str, float | None]:
    """What a step's line says of pairs: their mean margin, and the share that is above 0.

    Args:
        rewards: Of this process' micro-batches: see PreferenceLoss.rewards.
        pairs: Of the whole step.
    """
    if not engine.options.beta:
        return {}
    own = [found.double() for found in rewards if found is not None]
    margin, above = torch.stack(own).sum(0).tolist() if own else (0.0, 0.0)
    margin, above = engine.sum_over_processes(margin, above)
    return {
        "reward_margin": finite(margin / max(1, pairs)),
        "reward_accuracy": above / max(1, pairs),
    }


def engine_record(engine: Engine) -> dict[str, Any]:
    """What a checkpoint says about how it was made."""
    options = engine.options
    return {
        "processes": options.world,
        "zero_stage": options.zero_stage,
        "precision": options.precision,
        "checkpointed_layers": options.checkpointed_layers,
        "offload": options.offload,
        "optimizer": optimizer_state(engine),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "device": _device_name(),
        "attention": engine.attention,
    }


def has_dropout(model: Any) -> bool:
    """Whether training draws masks: of layers, adapters or attention."""
    shares = [m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    # Attention takes its share from the config, and has no layer for it.
    shares += [getattr(model.config, n, 0) for n in ("attention_dropout", "attn_pdrop", "dropout")]
    return any(share > 0 for share in shares)


def _device_name() -> str:
    """What computes, as far as it decides how numbers are rounded."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU {torch.backends.cpu.get_cpu_capability()}"


def seed_of(seed: int, step: int, number: int) -> int:
    """A seed for each step and process, so that no random state has to be saved.

    Dropout of step 120 is the same whether or not the run was stopped before it, and
    whatever validation and sampling drew in between.
    """
    mixed = seed
    for part in (step, number):
        # Source: the finalizer of splitmix64.
        mixed = (mixed + 0x9E3779B97F4A7C15 * (part + 1)) & _MASK
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
        mixed ^= mixed >> 31
    return mixed >> 1
