"""What is asked for by topic: a small typed model each, which refuses unknown keys.

A request holds them as parameters of their own, and the configs of steps hand them on.
"""

from dataclasses import field, replace
from typing import Literal

from pydantic.dataclasses import dataclass

from trainer.contract.addresses import masked
from trainer.contract.parameter_types import (
    TOPIC,
    BelowOne,
    Count,
    CountOrZero,
    Moment,
    NonEmpty,
    Positive,
    PositiveOrZero,
    RunName,
    SecretName,
    ServingEngine,
    Sha256,
    Share,
    VolumePath,
    WebOrigin,
)


@dataclass(frozen=True, kw_only=True, config=TOPIC)
class DataConfig:
    """What the records of the dataset are, and which of their tokens are trained."""

    shape: Literal["", "text", "chat", "completion", "preference"] = ""
    """'': found for each file by the keys of its first record; preference: pairs of answers, which
    are trained by DPO (see the topic preference)."""
    train_on: Literal["assistant", "last", "all"] = "assistant"
    """Turns that are trained: all of the assistant, its last one, or every token."""
    too_long: Literal["refuse", "drop", "cut"] = "refuse"
    """What becomes of a record, or a packed document, with more tokens than `context`."""
    template: VolumePath = ""
    """File on the volume with a chat template (Jinja); empty: the tokenizer's own."""
    system: str = ""
    """System turn of each record that has none."""
    packing: Literal["", "documents"] = ""
    """'': contexts are cut from the stream of all text, and a record of turns is one; documents:
    as many whole documents or records in a context as fit, none of which sees another."""
    weights: dict[VolumePath, Positive] = field(default_factory=dict)
    """Share of the trained tokens by folder or URL, `dataset` among them; empty: dataset alone."""
    replay: VolumePath = ""
    """Folder or URL of general text that keeps what the model knew; empty: none."""
    replay_share: BelowOne = 0.0
    """Share of the trained tokens that is of `replay`."""
    bos: Literal["", "never", "always"] = ""
    """Beginning-of-text token before each document of plain text; '': as the tokenizer does."""

    def __post_init__(self) -> None:
        if self.bos and self.is_of_records:
            raise ValueError(
                f"bos has no effect on chats and completions (got bos={self.bos!r}). "
                "Their template writes what they begin with. Leave bos out."
            )
        if self.is_of_pairs and (unused := self._not_of_pairs()):
            raise ValueError(
                f"{unused[0]} can't be combined with shape='preference' (got {unused[0]}="
                f"{getattr(self, unused[0])!r}). A pair is a context of its own, of which both "
                f"answers are trained. Leave {', '.join(unused)} out."
            )
        if self.shape == "text" and (unused := self.of_records()):
            raise ValueError(
                f"{unused[0]} has no effect on plain text (got shape='text'). "
                f"Leave {' and '.join(unused)} out, or name the shape of the records."
            )
        if bool(self.replay) != bool(self.replay_share):
            raise ValueError(
                f"replay and replay_share go together (got replay={self.replay!r}, "
                f"replay_share={self.replay_share}). Give both, or leave both out."
            )
        if self.replay in self.weights:
            raise ValueError(
                f"replay is a folder of weights too (got {self.replay!r}). Name it in one of them."
            )
        if with_query := [name for name in (*self.weights, self.replay) if "?" in name]:
            raise ValueError(
                f"weights and replay are recorded, so they take no query string (got "
                f"{masked(with_query[0])!r}). Name the address without it."
            )

    @property
    def is_mixture(self) -> bool:
        """Whether the text is of several folders, each with its share."""
        return bool(self.weights or self.replay)

    @property
    def is_of_records(self) -> bool:
        """Whether the dataset is said to be of chats or completions."""
        return self.shape in ("chat", "completion", "preference")

    @property
    def is_of_pairs(self) -> bool:
        """Whether the records are said to be pairs of a better and a worse answer."""
        return self.shape == "preference"

    def _not_of_pairs(self) -> list[str]:
        """Names of the keys that are set and mean nothing for pairs."""
        usual = {"train_on": "assistant", "packing": "", "weights": {}, "replay": ""}
        return [name for name, value in usual.items() if getattr(self, name) != value]

    def for_plain_text(self) -> "DataConfig":
        """The same without what means something for chats and completions alone."""
        usual = DataConfig()
        return replace(self, shape="", **{name: getattr(usual, name) for name in self.of_records()})

    def of_records(self) -> list[str]:
        """Names of the keys that are set and mean something for chats and completions alone."""
        usual = {"train_on": "assistant", "too_long": "refuse", "template": "", "system": ""}
        if self.packing:  # then a document may be too long as well
            del usual["too_long"]
        return [name for name, value in usual.items() if getattr(self, name) != value]


@dataclass(frozen=True, kw_only=True, config=TOPIC)
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
    keep_every: CountOrZero = 0
    """Steps between checkpoints that stay for `finetune forget` and `replay`; 0: none stay."""


@dataclass(frozen=True, kw_only=True, config=TOPIC)
class LoraConfig:
    """Train low-rank adapters instead of all weights."""

    rank: Count = 8
    """Width of the adapters."""
    alpha: Positive = 16.0
    """Adapters count alpha / rank times."""
    dropout: Share = 0.0
    """Share of the adapters' input dropped in training."""
    target_modules: list[str] | Literal["all-linear"] = field(default_factory=list)
    """Names of the layers that get one, or all-linear: all but the head; empty: what peft knows."""
    rslora: bool = False
    """Adapters count alpha / sqrt(rank) times, which suits high ranks (rsLoRA)."""
    dora: bool = False
    """Train the length of each weight's rows apart from their direction (DoRA): slower."""
    modules_to_save: list[str] = field(default_factory=list)
    """Modules trained whole beside the adapters: embeddings and head, where tokens are new."""
    base_bits: Literal[16, 4] = 16
    """4: the frozen linear layers are in 4 bits (QLoRA), in training and rounded so in `final`."""

    def __post_init__(self) -> None:
        if both := sorted({*self.target_modules} & {*self.modules_to_save}):
            raise ValueError(
                f"modules_to_save names what target_modules names too (got {', '.join(both)}). "
                "A module is trained whole or gets an adapter. Leave it out of one of them."
            )


@dataclass(frozen=True, kw_only=True, config=TOPIC)
class PreferenceConfig:
    """How pairs of answers are trained: direct preference optimization (DPO)."""

    beta: Positive = 0.1
    """How closely the model keeps to the base model: it scales the rewards (>0)."""


@dataclass(frozen=True, kw_only=True, config=TOPIC)
class ScheduleConfig:
    """The learning rate's curve after `learn_rate`, and where training ends."""

    kind: Literal["linear", "cosine", "constant", "wsd"] = "linear"
    """After the warm-up: down a line or half a cosine, level, or level and then down (wsd)."""
    warmup_steps: CountOrZero = 0
    """Steps in which the rate rises; 0: `warmup_ratio` says."""
    decay_ratio: Share = 0.2
    """Of kind wsd: share of the steps, the last ones, in which the rate falls."""
    min_rate: Share = 0.0
    """Where the rate falls to, as a share of `learn_rate`."""
    max_steps: CountOrZero = 0
    """End after so many optimizer steps, if the epochs have more; 0: by `epochs` alone."""

    def __post_init__(self) -> None:
        if self.kind == "constant" and self.min_rate:
            raise ValueError(
                f"min_rate has no effect with kind='constant' (got {self.min_rate}). That rate "
                "falls nowhere. Leave it out, or take another kind."
            )
        if self.max_steps and self.warmup_steps > self.max_steps:
            raise ValueError(
                f"warmup_steps is more than max_steps (got {self.warmup_steps} of "
                f"{self.max_steps}). The rate would never be learn_rate. Take fewer."
            )
        if self.decay_ratio != 0.2 and self.kind != "wsd":
            raise ValueError(
                f"decay_ratio has no effect with kind={self.kind!r} (got {self.decay_ratio}). "
                "Leave it out, or set kind to 'wsd'."
            )


@dataclass(frozen=True, kw_only=True, config=TOPIC)
class OptimizerConfig:
    """Adam, and where it is."""

    offload: Literal["", "never", "always"] = ""
    """Whether its numbers live in host memory (DeepSpeed's CPU Adam); '': where a GPU is full."""
    adam_bits: Literal[32, 8] = 32
    """Of Adam's two moments; 8 takes a quarter of the memory, and goes without offload."""
    weight_decay: PositiveOrZero = 0.0
    """Share of the learning rate by which weights shrink each step; biases and norms do not."""
    beta1: BelowOne = 0.9
    """How much of the gradients' mean stays each step."""
    beta2: BelowOne = 0.999
    """How much of their squares' mean stays."""
    eps: Positive = 1e-8
    """Added to the root of the squares before the mean is divided by it."""
    clip: PositiveOrZero = 1.0
    """Norm that a step's gradient is shortened to where it is longer; 0: never."""


@dataclass(frozen=True, kw_only=True, config=TOPIC)
class KernelsConfig:
    """How the model's operations are carried out."""

    compile: bool = False
    """Have torch.compile write them: minutes at the start, faster steps. Not with zero_stage 3
    over several processes."""
    liger: bool = False
    """Take Liger's fused ones, where it knows the architecture. On a GPU alone."""
    deterministic: bool = True
    """On a GPU take those whose sums are always in one order: without them a run that resumes is
    not the unbroken one to the last bit. A CPU's are always so."""


@dataclass(frozen=True, kw_only=True, config=TOPIC)
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


@dataclass(frozen=True, kw_only=True, config=TOPIC)
class EvaluationConfig:
    """What the evaluate step measures besides the held-out loss, on both models."""

    tasks: list[str] = field(default_factory=list)
    """Tasks of lm-eval by name, which needs the extra `tasks`."""
    limit: CountOrZero = 0
    """Most documents of each task; 0: all."""
    include_path: VolumePath = ""
    """Folder on the volume with YAML files of tasks of one's own."""
    max_drop: PositiveOrZero | None = None
    """How much worse than the base a task's metric may be for `retrain` to promote; None: any."""
    max_forgetting: PositiveOrZero | None = None
    """How much the loss on held-out text of data.replay may rise for it to promote; None: any."""

    def __post_init__(self) -> None:
        if self.max_drop is not None and not self.tasks:
            raise ValueError(f"max_drop has no effect without tasks (got {self.max_drop}).")


@dataclass(frozen=True, kw_only=True, config=TOPIC)
class ServingConfig:
    """How the finetuned model is served."""

    max_regression: PositiveOrZero = 0.0
    """How much worse than the revision that serves now its validation loss may be."""
    engine: ServingEngine = "builtin"
    """What answers: our own engine, or vLLM, which needs a GPU and an image that has it. auto: vLLM
    where it is installed and there is a GPU, or where the model exam says that ours can't."""
    engine_args: dict[str, str | int | float | bool] = field(default_factory=dict)
    """More arguments of vLLM's engine by name, for instance {"gpu_memory_utilization": 0.8}."""
    image: str = ""
    """On Kubernetes, the image of the server with its tag, such as finetune-vllm:0.2.0; '': that
    of the steps."""
    tensorizer_uri: VolumePath = ""
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
    api_key: SecretName = ""
    """Clients must send this key: name a Kubernetes Secret; here an environment variable."""
    cors_origins: list[WebOrigin] = field(default_factory=list)
    """Web origins whose pages may ask, for instance https://example.org; none by default."""
    adapters: list[RunName] = field(default_factory=list)
    """Other runs (or series of `retrain`) whose LoRA adapters the same server answers with, each
    under its name, on one base model in memory; here, and by the engine builtin alone."""

    def __post_init__(self) -> None:
        if self.adapters and self.engine != "builtin":
            raise ValueError(
                f"adapters can't be combined with engine={self.engine!r} (got "
                f"{', '.join(self.adapters)}). Set engine to 'builtin'."
            )
        if twice := sorted({name for name in self.adapters if self.adapters.count(name) > 1}):
            raise ValueError(f"adapters names a run twice (got {', '.join(twice)}).")
        if "final" in self.adapters:
            raise ValueError("adapters can't have the name 'final': the served run answers to it.")
        if self.engine_args and self.engine != "vllm":
            raise ValueError(
                f"engine_args has no effect with engine={self.engine!r} "
                f"(got {', '.join(self.engine_args)}). Set engine to 'vllm'."
            )


@dataclass(frozen=True, kw_only=True, config=TOPIC)
class RetentionConfig:
    """What stays of the runs of a series of retrainings once each is decided on.

    Whatever serves, or is needed by another run or for a rollback, stays besides.
    """

    keep_checkpoints_of: CountOrZero = 1
    """The newest runs that keep their checkpoints; 0: none."""
    keep_finals: Count = 3
    """The newest runs with a final model that stay; older ones go with their logs."""


@dataclass(frozen=True, kw_only=True, config=TOPIC)
class SkipConfig:
    """Documents that a run does not train on; order, steps and rates stay as they are with them."""

    documents: list[NonEmpty] = field(default_factory=list)
    """Patterns of paths of source files (`*` and `?`, also over '/'); PATH#N: its document N."""
    sha256: list[Sha256] = field(default_factory=list)
    """Digests of documents or of source files, under any name: `finetune forget` prints them."""

    @property
    def is_empty(self) -> bool:
        return not (self.documents or self.sha256)
