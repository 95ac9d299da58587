"""What the processes of a run are told: plain JSON, decided once before they start."""

import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from trainer.contract.checkpoints import name_of
from trainer.contract.run_folder import RunFolder
from trainer.contract.step_configs import FinetuneConfig
from trainer.contract.volume import path_on_volume
from trainer.training.plan import TrainingPlan
from trainer.training.schedule import Shortened


@dataclass(frozen=True, kw_only=True)
class Job:
    """A run's config with everything worked out that the config leaves open."""

    config: FinetuneConfig
    num_contexts: int
    num_ids: int = 0  # of tokens: the model gets an embedding for each
    batch_size: int
    global_batch: int
    zero_stage: int
    checkpointed_layers: int | None = 0  # computed again in the backward pass; None: all
    offload: bool = False
    from_step: int = 0  # of the checkpoint to continue from; 0: from the start
    is_trial: bool = False  # only see whether a step fits into memory
    is_trained: bool = False  # only the final model is to be written
    until: int = 0  # stop after this step, and make no final model; 0: train to the end
    measured_from: int = 0  # number of the first step that a replay measures; 0: it is no replay
    end_by: float = 0.0  # Unix time, by the budget; 0: no limit
    shortened: Shortened | None = None  # the schedule, by the budget
    left_out: tuple[tuple[int, int], ...] = ()  # contexts that are not trained on, as stretches

    @property
    def plan(self) -> TrainingPlan:
        config = self.config
        return TrainingPlan(
            num_contexts=self.num_contexts,
            global_batch=self.global_batch,
            batch_size=self.batch_size,
            epochs=config.epochs,
            seed=config.random_seed,
            shuffle=not config.no_shuffle,
            learn_rate=config.learn_rate,
            warmup_ratio=config.warmup_ratio,
            schedule=config.schedule,
            shortened=self.shortened,
            left_out=self.left_out,
        )

    @property
    def processes(self) -> int:
        """Of all nodes together."""
        return self.config.processes * self.config.nodes

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.config.volume, self.config.run_name)

    @property
    def curves(self) -> Path:
        """Where TensorBoard's events go."""
        return self.path("logs") / self.config.run_name / "tensorboard"

    @property
    def checkpoint_path(self) -> Path | None:
        return self.run.checkpoints / name_of(self.from_step) if self.from_step else None

    def path(self, name: str) -> Path:
        """The place on the volume that the config's field `name` holds."""
        return path_on_volume(self.config.volume, name, getattr(self.config, name))

    @property
    def tokenizer_path(self) -> Path:
        return self.path("tokenizer" if self.config.tokenizer else "model")

    def to_json(self) -> str:
        return json.dumps(TypeAdapter(Job).dump_python(self, mode="json"))

    @classmethod
    def from_json(cls, text: str) -> "Job":
        return TypeAdapter(Job).validate_json(text)
