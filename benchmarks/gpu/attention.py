"""Attention of GPT-J 6B's shape by each of torch's kernels: forward and backward."""

import statistics
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.gpu.scale import NotRun, Scale, device, seconds_of_steps
from trainer.training.engine.engine import DTYPES
from trainer.training.engine.kernels import keep_order_of_sums


def one(scale: Scale, backend: str, deterministic: bool = True) -> dict[str, Any]:
    """Seconds of a layer's attention, causal, in one order of sums or in any."""
    keep_order_of_sums(deterministic and device() == "cuda")
    shape = scale.batch, scale.heads, scale.context, scale.width // scale.heads  # (B, H, T, D)
    given = [
        torch.randn(shape, dtype=DTYPES[scale.precision], device=device(), requires_grad=True)
        for _ in range(3)
    ]

    def step() -> None:
        with sdpa_kernel(getattr(SDPBackend, backend)):
            found = scaled_dot_product_attention(*given, is_causal=True)
        found.backward(torch.ones_like(found))

    try:
        return {"seconds": statistics.median(seconds_of_steps(step, scale))}
    except RuntimeError as error:
        if not any(said in str(error) for said in ("No viable backend", "No available kernel")):
            raise
        raise NotRun(f"torch has no {backend.lower()} for this here") from error
