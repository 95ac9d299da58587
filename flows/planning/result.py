"""A plan, as the command line, the UI and the report show it."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from tasks.wording import format_seconds

DIGITS = 4  # after the point, in the JSON; as many that say something of what is below 1
LEAST_GIB = 0.005  # of a part, to be named


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
    """Class of GPU; empty: CPU, or a class that is not known, which is refused."""
    on_cpu: bool
    nodes: int
    cores: int
    """Of each node."""
    gpu_memory_gib: float
    gpu_memory_parts_gib: dict[str, float]
    gpu_memory_limit_gib: float
    host_memory_gib: float
    host_memory_parts_gib: dict[str, float]
    host_memory_limit_gib: float
    checkpoint_gib: float
    disk_gib: float
    """Checkpoints that are kept with the one being written, tokens, final model, and the base
    model where it is not there yet."""
    free_gib: float | None
    """On the volume; None: not known here, so not compared."""
    seconds_per_step: float
    seconds_parts: dict[str, float]
    hours: float
    """For which the trainer's machine is held: training, and evaluating after it."""
    hours_parts: dict[str, float]
    dollars_per_hour: float | None
    """None: the GPU has no price."""
    dollars: float | None
    correction: float
    """What earlier runs on the volume measured over what was planned; part of the times above."""
    estimated: bool
    """Whether the number of contexts is an estimate."""
    problems: list[str] = field(default_factory=list)
    """What would be refused, each with the way out."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, floats rounded."""
        return _rounded(dataclasses.asdict(self))

    def rows(self) -> list[tuple[str, str]]:
        """The plan for people: names and what is said of them."""
        about = "estimated" if self.estimated else "exact"
        contexts = f"{self.num_contexts:,} ({about}), {self.num_train_contexts:,} to train on"
        rows = [
            ("contexts", contexts),
            ("model", f"{self.parameters / 1e6:,.1f} M weights"),
            ("machine", self._machine()),
        ]
        if self.gpu or self.on_cpu:
            rows += self._of_machine()
        return rows + [("refused", problem) for problem in self.problems]

    def _of_machine(self) -> list[tuple[str, str]]:
        """What depends on the machine."""
        per_step = self.batch_size * self.gradients * self.processes
        host = f"{self.host_memory_gib:.1f} of {self.host_memory_limit_gib:.1f} GiB: "
        rows = [
            ("setting", self._setting()),
            ("steps", f"{self.steps:,} of {per_step} contexts, {self.tokens:,} tokens"),
            ("memory of the host", host + _parts(self.host_memory_parts_gib)),
            ("disk", self._disk()),
            ("time", self._time()),
        ]
        if self.gpu:
            figures = f"{self.gpu_memory_gib:.1f} of {self.gpu_memory_limit_gib:.1f} GiB: "
            each = "each " if self.processes > 1 else ""
            rows.append(
                (f"memory of {each}{self.gpu}", figures + _parts(self.gpu_memory_parts_gib))
            )
        if self.dollars:
            rows.append(("cost", f"${self.dollars:,.2f} at ${self.dollars_per_hour:.2f} an hour"))
        elif self.gpu and self.dollars is None:
            rows.append(("cost", f"not known: {self.gpu} has no price"))
        return rows

    def _machine(self) -> str:
        of_node = f"{self.cores} cores, {self.host_memory_limit_gib:.1f} GiB of memory"
        if self.on_cpu:
            return f"this one's CPU: {of_node}"
        if not self.gpu:
            return "not known, so that time, memory and cost are not"
        each = f"{self.nodes} nodes, each with " if self.nodes > 1 else ""
        return f"{each}{self.processes // self.nodes} x {self.gpu}, {of_node}"

    def _setting(self) -> str:
        parts = [
            f"{self.precision}, batch_size {self.batch_size}, gradients {self.gradients}",
            f"processes {self.processes}",
            f"zero_stage {self.zero_stage}, {'offload' if self.offload else 'no offload'}",
        ]
        if self.checkpointed_layers:
            parts.append(f"{self.checkpointed_layers} of {self.layers} layers computed again")
        return ", ".join(parts)

    def _disk(self) -> str:
        free = "what is free is not known here"
        if self.free_gib is not None:
            free = f"{self.free_gib:.2f} GiB are free"
        return f"{self.disk_gib:.2f} GiB, {self.checkpoint_gib:.2f} for a checkpoint; {free}"

    def _time(self) -> str:
        parts = {name: hours * 3600 for name, hours in self.hours_parts.items()}
        in_all = f"{format_seconds(self.hours * 3600)} in all: " + ", ".join(
            f"{name} {format_seconds(part)}" for name, part in parts.items() if part >= 0.5
        )
        measured = (
            ""
            if self.correction == 1
            else f"; {self.correction:.2f} times the formulas' time, as earlier runs measured"
        )
        step = self.seconds_per_step
        shown = f"{step:.2f} s" if step >= 0.1 else f"{1000 * step:.1f} ms"
        return f"{shown} a step, {in_all}{measured}"


def _parts(parts: dict[str, float]) -> str:
    return ", ".join(f"{name} {gib:.2f}" for name, gib in parts.items() if gib >= LEAST_GIB)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        zeros = -math.floor(math.log10(abs(value))) - 1 if 0 < abs(value) < 1 else 0
        return round(value, DIGITS + zeros)
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    return value
