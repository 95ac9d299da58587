"""What is asked for by topic: a small typed model each, which refuses unknown keys.

A request holds them as parameters of their own, and the configs of steps hand them on.
"""

from dataclasses import field
from typing import Literal

from pydantic.dataclasses import dataclass

from trainer.parameter_types import (
    STRICT,
    Count,
    CountOrZero,
    Moment,
    Positive,
    PositiveOrZero,
    ServingEngine,
    Share,
)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SamplingConfig:
    """How text is generated from a prompt."""

    prompt_tokens: Count = 200
    prompt_samples: Count = 5
    top_k: CountOrZero = 50
    top_p: Share = 0.95
    temperature: Positive = 1.0
    repetition_penalty: Positive = 1.1


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CheckpointsConfig:
    """Which checkpoints are kept, and when they are made besides `save_steps`."""

    keep_last: Count = 2
    """The newest ones that stay."""
    keep_best: bool = True
    """Keep the one of the lowest validation loss as well."""
    max_gib: PositiveOrZero = 0.0
    """GiB that all may take together; 0: no limit. The newest and the best stay regardless."""
    every_minutes: PositiveOrZero = 0.0
    """Minutes between two checkpoints; 0: by `save_steps` alone."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class LoraConfig:
    """Train low-rank adapters instead of all weights."""

    rank: Count = 8
    """Width of the adapters."""
    alpha: Positive = 16.0
    """Adapters count alpha / rank times."""
    dropout: Share = 0.0
    """Share of the adapters' input dropped in training."""
    target_modules: list[str] = field(default_factory=list)
    """Names of the layers that get one; empty: what peft knows for the architecture."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class OptimizerConfig:
    """Adam, and where it is."""

    offload: Literal["", "never", "always"] = ""
    """Whether its numbers live in host memory (DeepSpeed's CPU Adam); '': where a GPU is full."""
    adam_bits: Literal[32, 8] = 32
    """Of Adam's two moments; 8 takes a quarter of the memory, and goes without offload."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class KernelsConfig:
    """How the model's operations are carried out."""

    compile: bool = False
    """Have torch.compile write them: minutes at the start, faster steps. Not with zero_stage 3
    over several processes."""
    liger: bool = False
    """Take Liger's fused ones, where it knows the architecture. On a GPU alone."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BudgetConfig:
    """What a run may take: one that is planned to take more is refused before it begins.

    One that turns out to take more ends earlier, with a finished model.
    """

    max_dollars: PositiveOrZero = 0.0
    """Of cores, memory and GPUs, at the catalogue's prices; 0: no limit."""
    max_hours: PositiveOrZero = 0.0
    """From start to end; 0: no limit."""
    deadline: Moment = ""
    """When it must be done: a date or time by ISO 8601, UTC unless it says so; empty: none."""
    ends: tuple[tuple[Count, Count], ...] = ()
    """End as a budget ended another run, by no clock: (steps done, last step from then on), ..."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ServingConfig:
    """How the finetuned model is served."""

    max_regression: PositiveOrZero = 0.0
    """How much worse than the revision that serves now its validation loss may be."""
    engine: ServingEngine = "builtin"
    """What answers: our own engine, or vLLM, which needs a GPU and an image that has it."""
    tensorizer_uri: str = ""
    """Read the weights from this tensorizer file: a URL, or a file in `final/`."""
    kind: Literal["", "kserve", "deployment"] = ""
    """On Kubernetes; '' is KServe's InferenceService where the cluster has it."""
    min_replicas: CountOrZero = 0
    """Servers that stay when nobody asks."""
    max_replicas: Count = 1
    """Servers that may run at a time."""
    retention_minutes: Count = 20
    """Minutes that the last server stays after the last request, where min_replicas is 0."""
    gpus: CountOrZero = 1
    """GPUs of a server; 0: it runs on the CPU."""
    cores: Count = 4
    """CPU cores that a server is sure of."""
    max_cores: Count = 12
    """CPU cores that it may use."""
    memory_gib: Count = 8
    """Memory that a server is sure of."""
    max_memory_gib: Count = 60
    """Memory that it may use."""
    ready_minutes: Positive = 30.0
    """Minutes until a new server must be ready, pulling its image included."""
