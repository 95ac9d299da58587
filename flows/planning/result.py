"""A plan, as the command line, the UI and the report show it."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

DIGITS = 4  # after the point, in the JSON


@dataclass(frozen=True, kw_only=True)
class Plan:
    """DESIGN section 8.1; sizes in GiB, money in dollars."""

    num_contexts: int
    num_train_contexts: int
    steps: int
    tokens: int
    """Trained on in all, padding included."""
    batch_size: int
    """Contexts in a micro-batch of one process."""
    gradients: int
    processes: int
    zero_stage: int
    offload: bool
    """Whether optimizer and gradients live in host memory."""
    checkpointed_layers: int
    """Layers that are computed again in the backward pass, to save memory."""
    layers: int
    precision: str
    parameters: int
    """Weights of the model."""
    gpu: str
    """Class of GPU; empty: CPU."""
    gpu_memory_gib: float
    gpu_memory_parts_gib: dict[str, float]
    gpu_memory_limit_gib: float
    host_memory_gib: float
    host_memory_parts_gib: dict[str, float]
    host_memory_limit_gib: float
    checkpoint_gib: float
    disk_gib: float
    """Checkpoints that are kept with the one being written, final model and tokens."""
    seconds_per_step: float
    seconds_parts: dict[str, float]
    evaluation_seconds: float
    """Of each evaluation: at checkpoints and at the end."""
    hours: float
    dollars_per_hour: float | None
    """None: the GPU has no price."""
    dollars: float | None
    estimated: bool
    """Whether the number of contexts is an estimate."""
    problems: list[str] = field(default_factory=list)
    """What would be refused, each with the way out."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, floats rounded."""
        return _rounded(dataclasses.asdict(self))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    return value
