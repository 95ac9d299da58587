"""A plan, as the command line, the UI and the report show it."""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from trainer.contract.wording import format_seconds, part_words, skipped_words

DIGITS = 4  # after the point, in the JSON; as many that say something of what is below 1
LEAST_GIB = 0.005  # of a part, to be named


@dataclass(frozen=True, kw_only=True)
class Plan:
    """DESIGN section 8.1; sizes in GiB, money in dollars."""

    num_contexts: int
    num_train_contexts: int
    steps: int
    tokens: int
    """Trained on in all, padding included; of chats and completions what is trained alone."""
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
    """Weights of the model, all of them."""
    active_parameters: int = 0
    """Those that work on a token: fewer in a mixture of experts; 0: as many."""
    gpu: str
    """Class of GPU; empty: CPU, or a class that is not known, which is refused."""
    on_cpu: bool
    on_cluster: bool
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
    spot_dollars_per_hour: float | None
    """On nodes that may be taken back; None: there is no such price."""
    spot_dollars: float | None
    light_cores: int | None
    """Of the Jobs that need no trainer (plan, fetch, tokenize, deploy); None: not on a cluster."""
    light_memory_gib: int | None
    correction: float
    """What earlier runs on the volume measured over what was planned; part of the times above."""
    replay_checkpoints: int = 0
    """That stay for `finetune forget` and `replay`; part of `disk_gib`."""
    mean_replay_hours: float = 0.0
    """To do again all that follows a document, from the checkpoint before it: the mean."""
    left_out: dict[str, Any] | None = None
    """What `skip` leaves out: trainer/tokens/left_out.py; None: nothing, or not known yet."""
    skips: bool = False
    """Whether `skip` names anything."""
    padding_share: float | None = None
    """Of whole records: the share of all contexts' ids that is padding; None: not known."""
    left_out_share: float | None = None
    """Of whole records: the share of the text that too_long drops or cuts; None: not known."""
    parts: list[dict[str, Any]] = field(default_factory=list)
    """Of a mixture: what an epoch takes of each folder."""
    estimated: bool
    """Whether the number of contexts is an estimate."""
    trained_parameters: int | None = None
    """Of LoRA's adapters and what is trained whole beside them; None: all of the model."""
    nights_left: int | None = None
    """How many more nights of its series fit on the volume; None: it is of none, or many do."""
    problems: list[str] = field(default_factory=list)
    """What would be refused, each with the way out."""
    notes: list[str] = field(default_factory=list)
    """What will be done otherwise than asked, and what can't be done with the model later."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, floats rounded."""
        return _rounded(dataclasses.asdict(self))

    def _active(self) -> str:
        if self.active_parameters in (0, self.parameters):
            return ""
        return f", of which {self.active_parameters / 1e6:,.1f} M work on a token"

    def rows(self) -> list[tuple[str, str]]:
        """The plan for people: names and what is said of them."""
        about = "estimated" if self.estimated else "exact"
        contexts = f"{self.num_contexts:,} ({about}), {self.num_train_contexts:,} to train on"
        if self.padding_share is not None:
            contexts += f", {self.padding_share:.1%} padding"
        if self.left_out_share:
            contexts += f", {self.left_out_share:.1%} of the text left out as too long"
        rows = [
            ("contexts", contexts),
            ("model", f"{self.parameters / 1e6:,.1f} M weights" + self._active()),
            ("machine", self._machine()),
        ]
        rows[1:1] = [(f"of {part['name']}", part_words(part)) for part in self.parts]
        if self.trained_parameters is not None:
            share = self.trained_parameters / max(1, self.parameters)
            trained = f"{self.trained_parameters:,} weights, {share:.2%} of the model's number"
            rows.insert(2 + len(self.parts), ("trained", trained))
        if self.skips:
            later = "what skip names is counted when the text is tokenized, before training"
            rows.append(("left out", skipped_words(self.left_out) if self.left_out else later))
        if self.light_cores:
            light = f"{self.light_cores} cores, {self.light_memory_gib} GiB each"
            rows.append(("steps without a trainer", light))
        if self.gpu or self.on_cpu:
            rows += self._of_machine()
        rows += [("note", note) for note in self.notes]
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
        if self.replay_checkpoints:
            rows.append(("replays", self._replays()))
        if self.gpu:
            figures = f"{self.gpu_memory_gib:.1f} of {self.gpu_memory_limit_gib:.1f} GiB: "
            each = "each " if self.processes > 1 else ""
            rows.append(
                (f"memory of {each}{self.gpu}", figures + _parts(self.gpu_memory_parts_gib))
            )
        if self.dollars:
            rows.append(("cost", self._cost(self.dollars, self.dollars_per_hour)))
        elif self.gpu and self.dollars is None:
            rows.append(("cost", f"not known: {self.gpu} has no price"))
        return rows

    def _cost(self, dollars: float, per_hour: float | None) -> str:
        cost = f"${dollars:,.2f} at ${per_hour:.2f} an hour"
        if self.spot_dollars is None:
            return cost
        return (
            cost + f"; on spot nodes ${self.spot_dollars:,.2f} at ${self.spot_dollars_per_hour:.2f}"
        )

    def _machine(self) -> str:
        of_node = f"{self.cores} cores, {self.host_memory_limit_gib:.1f} GiB of memory"
        each = f"{self.nodes} nodes, each with " if self.nodes > 1 else ""
        if self.on_cpu and self.on_cluster:
            return f"{each}CPUs of the cluster: {of_node}"
        if self.on_cpu:
            return f"this one's CPU: {of_node}"
        if not self.gpu:
            return "not known, so that time, memory and cost are not"
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
        if self.nights_left is not None:
            free += f", and are full after {self.nights_left} more nights like the last ones"
        return f"{self.disk_gib:.2f} GiB, {self.checkpoint_gib:.2f} for a checkpoint; {free}"

    def _replays(self) -> str:
        gib = self.replay_checkpoints * self.checkpoint_gib
        hours = format_seconds(3600 * self.mean_replay_hours)
        return (
            f"{self.replay_checkpoints:,} checkpoints stay for them, {gib:.2f} GiB of the disk; to "
            f"leave a document out later takes {hours} in the mean"
        )

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
