"""What a run has to do, and the machine it is planned for: plain data and counts."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from trainer.planning import memory_model
from trainer.planning.catalogue import Gpu
from trainer.planning.memory_model import Setting
from trainer.planning.model_shape import ModelShape
from trainer.planning.step_count import curve_steps

KEEP_LAST = 2  # checkpoints, with the best one: the defaults of `checkpoints`


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the run is planned for, beside its parameters."""

    on_cpu: bool = False
    """Planned as if there were no GPU: local processes, or trainer_gpu=none on a cluster."""
    on_cluster: bool = False
    """Whether the machines are a cluster's, which have a price."""
    memory_gib: float | None = None
    """Host memory of a node; None: `trainer_ram`."""
    cores: int | None = None
    """None: `trainer_cores`."""
    gpu: Gpu | None = None
    """The user's own, which costs nothing; None: that of `trainer_gpu`, or a CPU."""
    gpu_name: str = ""
    gpus: int = 0
    """How many of those there are."""
    free_gib: float | None = None
    """Free space on the volume; None: not known, not checked."""
    now: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Machine:
    gpu_name: str
    gpu: Gpu | None
    gpus: int
    cores: int
    memory_gib: float
    free_gib: float | None
    nodes: int = 1  # of this kind
    on_cpu: bool = False
    on_cluster: bool = False
    is_own: bool = False  # the user's, which costs nothing
    light_cores: int | None = None  # of a cluster's steps that need no trainer
    light_memory_gib: int | None = None

    @property
    def is_known(self) -> bool:
        """False where the GPU's class is none of the catalogue."""
        return self.on_cpu or self.gpu is not None

    @classmethod
    def of(cls, parameters: Mapping[str, Any], gpu: Gpu | None, place: Place) -> "Machine":
        return cls(
            gpu_name=(place.gpu_name or parameters["trainer_gpu"]) if gpu else "",
            gpu=gpu,
            gpus=parameters["trainer_gpus"] if gpu else 0,
            cores=place.cores or parameters["trainer_cores"],
            memory_gib=place.memory_gib or parameters["trainer_ram"],
            free_gib=place.free_gib,
            nodes=parameters.get("cluster", {}).get("nodes", 1)
            if place.on_cluster or (gpu and not place.gpu)
            else 1,
            on_cpu=place.on_cpu,
            on_cluster=place.on_cluster,
            is_own=place.cores is not None,
            light_cores=parameters.get("cluster", {}).get("light_cores"),
            light_memory_gib=parameters.get("cluster", {}).get("light_memory_gib"),
        )


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is to be done, and how."""

    shape: ModelShape
    setting: Setting
    gradients: int
    num_contexts: int
    num_train_contexts: int
    epochs: int
    save_steps: int
    kept_checkpoints: int
    warmup_ratio: float
    schedule: Mapping[str, Any]
    fetches: bool
    """Whether the base model comes to the volume first."""
    budget: Mapping[str, Any]
    keep_every: int = 0
    """Steps between checkpoints that stay for replays; 0: none."""

    @classmethod
    def of(
        cls,
        shape: ModelShape,
        parameters: Mapping[str, Any],
        setting: Setting,
        gradients: int,
        contexts: int,
        train_contexts: int,
        *,
        fetches: bool = False,
    ) -> "Work":
        retention = parameters.get("checkpoints") or {}
        best = bool(retention.get("keep_best", True))
        return cls(
            shape=shape,
            setting=setting,
            gradients=gradients,
            num_contexts=contexts,
            num_train_contexts=train_contexts,
            epochs=parameters["epochs"],
            save_steps=parameters["save_steps"],
            kept_checkpoints=retention.get("keep_last", KEEP_LAST) + best,
            warmup_ratio=parameters.get("warmup_ratio", 0.1),
            schedule=parameters.get("schedule") or {},
            fetches=fetches,
            budget=parameters.get("budget") or {},
            keep_every=retention.get("keep_every", 0),
        )

    @property
    def global_batch(self) -> int:
        return self.setting.batch_size * self.gradients * self.setting.processes

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.num_train_contexts / self.global_batch)

    @property
    def whole_steps(self) -> int:
        """Of all epochs."""
        return self.steps_per_epoch * self.epochs

    @property
    def steps(self) -> int:
        """Of all epochs, or as many of them as schedule.max_steps allows."""
        return min(self.whole_steps, self.schedule.get("max_steps") or self.whole_steps)

    @property
    def trained_contexts(self) -> int:
        """Contexts in all steps; one that is in two epochs counts twice."""
        if not self.steps_per_epoch:
            return 0
        epochs, steps = divmod(self.steps, self.steps_per_epoch)
        return epochs * self.num_train_contexts + steps * self.global_batch

    @property
    def saves(self) -> int:
        """Checkpoints in all: each `save_steps`, and one at the end."""
        return math.ceil(self.steps / self.save_steps) if self.save_steps else 1

    @property
    def validations(self) -> int:
        """Of held-out text: at each checkpoint, and where there is none within the run."""
        return self.saves + len(curve_steps(self.steps, self.save_steps))

    @property
    def replay_checkpoints(self) -> int:
        """Checkpoints that stay for replays, beside the newest and the best."""
        return self.steps // self._replay_steps if self._replay_steps else 0

    @property
    def _replay_steps(self) -> int:
        """Steps between two of them; 0: there are none."""
        return max(self.keep_every, self.save_steps) if self.keep_every and self.save_steps else 0

    @property
    def mean_replay_steps(self) -> float:
        """Steps to do again from the checkpoint before a document, wherever it is, to the end."""
        return (self.steps + min(self._replay_steps or self.steps, self.steps)) / 2

    @property
    def disk_bytes(self) -> int:
        tokens = self.num_contexts * self.setting.context * self.setting.texts
        token_bytes = 2 if self.shape.vocabulary <= 2**16 else 4
        checkpoints = self.kept_checkpoints + self.replay_checkpoints + 1
        kept = checkpoints * memory_model.checkpoint_bytes(
            self.shape, self.setting.trained_parameters
        )
        models = (1 + self.fetches) * memory_model.model_bytes(self.shape)
        return kept + models + tokens * token_bytes


def share(contexts: int, train_ratio: float) -> int:
    """Contexts to train on."""
    # The small addend undoes what 0.29 * 100 = 28.999... would lose.
    return math.floor(contexts * train_ratio + 1e-9)
