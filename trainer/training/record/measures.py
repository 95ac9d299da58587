"""What each step's line says of time, memory and operations, and how long the rest will take."""

import numpy as np
import torch

from trainer.contract.json_text import parse_json
from trainer.planning.model_shape import ModelShape
from trainer.planning.operations import peak_flops, step_flops
from trainer.planning.step_count import curve_steps
from trainer.tokens.pair_contexts import text_lengths
from trainer.tokens.store import TokenStore
from trainer.training.data.validation import held_out
from trainer.training.engine.engine import Engine
from trainer.training.job import Job
from trainer.training.record.memory_use import HostPeak, gpu_peak_gib
from trainer.training.record.timing import Pace, times_left
from trainer.training.save.saving import Saver


class Measures:
    """Of one process; the figures that go into lines are those of the first."""

    def __init__(self, job: Job, engine: Engine, store: TokenStore, saver: Saver) -> None:
        self.pace = Pace()
        self._job, self._store, self._saver = job, store, saver
        self._world = engine.options.world
        self._host = HostPeak(engine.options.rank % job.config.processes == 0)
        self._shape = _shape(job)
        on_gpu = engine.device.type == "cuda"
        self._peak = peak_flops(torch.cuda.get_device_name()) if on_gpu else None
        self._gpu_gib: float | None = None
        self._tokens = 0  # trained by this process and its like since they began

    def host_gib(self) -> float:
        """This process' part of a node's host memory, to be added up over all processes."""
        self._gpu_gib = gpu_peak_gib()
        return self._host.gib() / self._job.config.nodes

    def of_step(self, contexts: np.ndarray, seconds: float) -> dict[str, float]:
        """The measured fields of a step's line.

        Args:
            contexts: Indexes of the step's contexts.
            seconds: From asking for its data to the end of its optimizer step.
        """
        lengths = text_lengths(self._store, contexts)
        self._tokens += self._store.trained_tokens(contexts)
        self.pace.add("step", seconds)
        shares = self.pace.shares(
            data=self.pace.seconds("data"), checkpoint=self._saver.stalled_seconds
        )
        found = {f"{name}_wait_share": share for name, share in shares.items()}
        if self._gpu_gib is not None:
            found["gpu_memory_gib"] = self._gpu_gib
        if self._shape is not None:
            frozen = self._job.config.lora is not None
            per_second = step_flops(self._shape, lengths, frozen=frozen) / max(seconds, 1e-9)
            found["flops_per_second"] = per_second
            if self._peak is not None:
                found["peak_share"] = per_second / (self._peak * self._world)
        return found

    def remaining_seconds(self, done: int, total: int, *, recent: bool = False) -> float:
        """From `done` steps to `total`: steps, validations, samples and checkpoints.

        Args:
            recent: Go by the latest of each alone, as who watches does; else by all of them.
        """
        config = self._job.config
        saves = times_left(config.save_steps, done, total)
        if minutes := config.checkpoints.every_minutes:  # whichever comes more often
            saves = max(saves, int((total - done) * self.pace.mean("step") / (60 * minutes)))
        samples = times_left(config.prompt_every, done, total) if config.prompt_every else saves
        between = sum(done < step < total for step in curve_steps(total, config.save_steps))
        left = {"step": total - done, "validation": saves + between, "checkpoint": saves}
        if config.prompt_file:
            left["samples"] = samples
        expected = {"validation": self._expected_validation()}
        return self.pace.remaining_seconds(left, expected, recent=recent)

    def _expected_validation(self) -> float:
        """By the speed of training, of which a forward pass is a third."""
        tokens = self._store.trained_tokens(held_out(self._store))
        return tokens * self.pace.seconds("step") / max(1, self._tokens) / 3


def _shape(job: Job) -> ModelShape | None:
    """The base model's dimensions; None where its config names them otherwise than others do."""
    try:
        text = (job.path("model") / "config.json").read_text(encoding="utf-8")
        return ModelShape.from_config(parse_json(text))
    except ValueError:
        return None
