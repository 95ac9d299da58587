"""Bring numbers from a GPU to the host: once for all that are wanted."""

from typing import Any

import torch
from torch import Tensor


def fetch(*values: Any) -> list[float]:
    """The numbers of tensors of one number each, brought to the host together.

    Tensors of a GPU are stacked there: the host waits for it once.
    """
    tensors = [v.detach().double() for v in values if isinstance(v, Tensor)]
    device = next((t.device for t in tensors if t.device.type != "cpu"), torch.device("cpu"))
    found = iter(torch.stack([t.to(device) for t in tensors]).tolist() if tensors else [])
    return [next(found) if isinstance(v, Tensor) else float(v) for v in values]
