"""Adam: in host memory, in 8 bits, or clipping by itself, as the engine's options ask."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

BIASES_AND_NORMS = ("bias", "layernorm", "rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)")


@dataclass(frozen=True, kw_only=True)
class AdamOptions:
    """Adam's numbers; the defaults are those of transformers' Trainer."""

    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    clip: float = 1.0
    """The largest norm a step is taken with; 0: any."""


def decayed_and_not(model: torch.nn.Module) -> tuple[list[Any], list[Any]]:
    """The trained parameters whose weights decay, and the biases and norms, which do not.

    Source: `get_decay_parameter_names` of transformers' Trainer.
    """
    from transformers.trainer_pt_utils import get_parameter_names

    names = set(get_parameter_names(model, [torch.nn.LayerNorm], list(BIASES_AND_NORMS)))
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decayed = [p for name, p in trained if name in names]
    return decayed, [p for name, p in trained if name not in names]


def make_adam(
    model: torch.nn.Module, *, zero_stage: int, offload: bool, bits: int, options: AdamOptions
) -> torch.optim.Optimizer:
    """Adam for DeepSpeed to spread over the processes.

    Args:
        bits: Of its moments: 32, or 8 in blocks.
    """
    trained = _groups(model, options.weight_decay)
    given: dict[str, Any] = {
        "lr": 0.0,
        "betas": (options.beta1, options.beta2),
        "eps": options.eps,
        "weight_decay": options.weight_decay,
    }
    if offload:
        from deepspeed.ops.adam import DeepSpeedCPUAdam  # compiles itself on first use
        from torch.utils.cpp_extension import _get_build_directory

        with compiling_alone(Path(_get_build_directory("cpu_adam", verbose=False))):
            return DeepSpeedCPUAdam(trained, **given)
    if bits == 8:
        from trainer.training.engine.eight_bits import EightBitAdam

        clipping = type("ClippingEightBitAdam", (Clipping, EightBitAdam), {})
        adam = (clipping if zero_stage == 0 else EightBitAdam)(trained, **given)
    else:
        kind: Any = ClippingAdamW if zero_stage == 0 else torch.optim.AdamW
        adam = kind(trained, **given, fused=True)
    if isinstance(adam, Clipping):
        adam.largest_norm = options.clip
    return adam


def _groups(model: torch.nn.Module, weight_decay: float) -> list[Any]:
    """What Adam is given; one group without decay, as DeepSpeed then has its parts in one row."""
    if not weight_decay:
        return [p for p in model.parameters() if p.requires_grad]
    decayed, others = decayed_and_not(model)
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


class Clipping(torch.optim.Optimizer):
    """Adam that clips, and leaves out a step whose gradients are not finite.

    At ZeRO stage 0 DeepSpeed would apply such a step; at the others it finds it itself.
    """

    largest_norm = 1.0  # 0: any
    grad_norm = torch.zeros(())
    """Of the last step's gradients, on their device: infinite or NaN, the step was left out."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        parameters = [p for group in self.param_groups for p in group["params"]]
        limit = self.largest_norm or torch.inf
        self.grad_norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
        self._apply(closure)

    def _apply(self, closure: Any) -> None:
        if torch.isfinite(self.grad_norm):  # the host waits: bitsandbytes' Adam can't be told
            super().step(closure)


class ClippingAdamW(Clipping, torch.optim.AdamW):
    def _apply(self, closure: Any) -> None:
        # What torch's GradScaler sets: the fused kernel looks at it, and the host does not wait.
        self.grad_scale, self.found_inf = None, (~torch.isfinite(self.grad_norm)).float()
        torch.optim.AdamW.step(self, closure)


@contextmanager
def compiling_alone(folder: Path) -> Iterator[None]:
    """Be the one who builds the extension of that folder.

    A process that is killed while it builds leaves torch's lock file behind, and every later
    one would wait for it without end. Ours goes with its process.
    """
    with open(folder / "finetune.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "lock").unlink(missing_ok=True)
        yield
