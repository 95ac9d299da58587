"""What a run has to do, and the machine it is planned for: plain data and counts."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from infra.catalogue import Gpu
from trainer import memory_model
from trainer.memory_model import Setting
from trainer.model_shape import ModelShape

KEEP_LAST = 2  # checkpoints, with the best one: the defaults of `checkpoints`


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where the run is planned for, beside its parameters."""

    on_cpu: bool = False
    """Local processes, planned as if there were no GPU."""
    may_have_gpu: bool = False
    """Whether those may find one all the same, and train on it."""
    memory_gib: float | None = None
    """Host memory of a node; None: `trainer_ram`."""
    cores: int | None = None
    """None: `trainer_cores`."""
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
    may_have_gpu: bool = False  # where `gpu` is None

    @property
    def is_known(self) -> bool:
        """False where the GPU's class is none of the catalogue."""
        return self.on_cpu or self.gpu is not None

    @classmethod
    def of(cls, parameters: Mapping[str, Any], gpu: Gpu | None, place: Place) -> "Machine":
        return cls(
            gpu_name=parameters["trainer_gpu"] if gpu else "",
            gpu=gpu,
            gpus=parameters["trainer_gpus"] if gpu else 0,
            cores=place.cores or parameters["trainer_cores"],
            memory_gib=place.memory_gib or parameters["trainer_ram"],
            free_gib=place.free_gib,
            nodes=parameters.get("cluster", {}).get("nodes", 1) if gpu else 1,
            on_cpu=place.on_cpu,
            may_have_gpu=place.may_have_gpu,
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
    fetches: bool
    """Whether the base model comes to the volume first."""
    budget: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        shape: ModelShape,
        parameters: Mapping[str, Any],
        setting: Setting,
        contexts: int,
        train_contexts: int | None = None,
        *,
        fetches: bool = False,
    ) -> "Work":
        retention = parameters.get("checkpoints") or {}
        best = bool(retention.get("keep_best", True))
        return cls(
            shape=shape,
            setting=setting,
            gradients=parameters["gradients"],
            num_contexts=contexts,
            num_train_contexts=_share(contexts, parameters["train_ratio"])
            if train_contexts is None
            else train_contexts,
            epochs=parameters["epochs"],
            save_steps=parameters["save_steps"],
            kept_checkpoints=retention.get("keep_last", KEEP_LAST) + best,
            fetches=fetches,
            budget=parameters.get("budget") or {},
        )

    @property
    def global_batch(self) -> int:
        return self.setting.batch_size * self.gradients * self.setting.processes

    @property
    def steps(self) -> int:
        return math.ceil(self.num_train_contexts / self.global_batch) * self.epochs

    @property
    def saves(self) -> int:
        """Checkpoints in all: each `save_steps`, and one at the end."""
        return math.ceil(self.steps / self.save_steps) if self.save_steps else 1

    @property
    def disk_bytes(self) -> int:
        tokens = self.num_contexts * self.setting.context
        token_bytes = 2 if self.shape.vocabulary <= 2**16 else 4
        kept = (self.kept_checkpoints + 1) * memory_model.checkpoint_bytes(
            self.shape, self.setting.trained_parameters
        )
        models = (1 + self.fetches) * memory_model.model_bytes(self.shape)
        return kept + models + tokens * token_bytes


def _share(contexts: int, train_ratio: float) -> int:
    # The small addend undoes what 0.29 * 100 = 28.999... would lose.
    return math.floor(contexts * train_ratio + 1e-9)
