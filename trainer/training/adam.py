"""Adam: in host memory, in 8 bits, or clipping by itself, as the engine's options ask."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

GRADIENT_CLIP = 1.0  # the largest norm a step is taken with; transformers' Trainer's default
ADAM = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}  # Trainer's, too


def make_adam(
    trained: list[torch.nn.Parameter], *, zero_stage: int, offload: bool, bits: int
) -> torch.optim.Optimizer:
    """Adam for DeepSpeed to spread over the processes.

    Args:
        bits: Of its moments: 32, or 8 in blocks.
    """
    options: dict[str, Any] = {"lr": 0.0, **ADAM}
    if offload:
        from deepspeed.ops.adam import DeepSpeedCPUAdam  # compiles itself on first use
        from torch.utils.cpp_extension import _get_build_directory

        with compiling_alone(Path(_get_build_directory("cpu_adam", verbose=False))):
            return DeepSpeedCPUAdam(trained, **options)
    if bits == 8:
        from trainer.training.eight_bits import EightBitAdam

        clipping = type("ClippingEightBitAdam", (Clipping, EightBitAdam), {})
        return (clipping if zero_stage == 0 else EightBitAdam)(trained, **options)
    adam = ClippingAdamW if zero_stage == 0 else torch.optim.AdamW
    return adam(trained, **options, fused=True)


class Clipping(torch.optim.Optimizer):
    """Adam that clips, and leaves out a step whose gradients are not finite.

    At ZeRO stage 0 DeepSpeed would apply such a step; at the others it finds it itself.
    """

    grad_norm = 0.0
    applied = True

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        parameters = [p for group in self.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, GRADIENT_CLIP)
        self.grad_norm = float(norm)
        self.applied = bool(torch.isfinite(norm))
        if self.applied:
            super().step(closure)


class ClippingAdamW(Clipping, torch.optim.AdamW):
    pass


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
