"""The configuration of each step: one frozen dataclass, loaded strictly.

Loads no torch: importing this costs pydantic alone.
"""

from dataclasses import field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le
from pydantic.dataclasses import dataclass

from trainer.contract.parameter_types import (
    STRICT,
    BatchSize,
    BoundaryIndex,
    Count,
    CountOrZero,
    NonEmpty,
    Order,
    Percent,
    Positive,
    PositiveOrZero,
    RunName,
    SecretName,
    Seed,
    ServingEngine,
    Share,
    VolumePath,
    WebOrigin,
    ZeroStage,
)
from trainer.contract.parameters import default_of
from trainer.contract.topics import (
    BudgetConfig,
    CheckpointsConfig,
    DataConfig,
    EvaluationConfig,
    KernelsConfig,
    LoraConfig,
    OptimizerConfig,
    PreferenceConfig,
    RetentionConfig,
    ScheduleConfig,
    SkipConfig,
)
from trainer.contract.validation import load_json


@dataclass(frozen=True, kw_only=True, config=STRICT)
class StepConfig:
    """What every step knows."""

    volume: NonEmpty
    """Folder where the volume is mounted; every other path is relative to it."""
    run_name: str = ""
    """The run this step belongs to; empty for a step on its own."""
    flow_began: PositiveOrZero = 0.0
    """When the orchestrator began that asks for the step: Unix time; 0: not known."""
    asked: PositiveOrZero = 0.0
    """When it asked."""
    inputs: dict[str, str] = field(default_factory=dict)
    """Digests of what the step reads on the volume, by name, as the steps before it left them."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class SamplingConfig:
    """How text is generated from a prompt."""

    prompt_tokens: CountOrZero = default_of("prompt_tokens")
    prompt_samples: CountOrZero = default_of("prompt_samples")
    top_k: CountOrZero = default_of("top_k")
    top_p: Share = default_of("top_p")
    temperature: Positive = default_of("temperature")
    repetition_penalty: Positive = default_of("repetition_penalty")

    @property
    def writes(self) -> bool:
        """Whether any text is generated; 0 tokens or 0 samples mean none."""
        return self.prompt_tokens > 0 and self.prompt_samples > 0


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FetchConfig(StepConfig):
    """Check what needs the volume to be checked, and bring the base model there."""

    model: NonEmpty
    """A folder on the volume, else a Hugging Face id, `org/name` or `org/name@revision`."""
    tokenizer: str = ""
    """Likewise; empty: the model's own."""
    trust_remote_code: bool = default_of("trust_remote_code")
    """Run code in the model's folder; from the hub it needs a commit, `org/name@COMMIT`."""
    tensorizer_uri: VolumePath = ""
    """Where tensorizer's file with the model's weights is; empty: in the model's folder."""
    dataset: NonEmpty
    """Path on the volume or any fsspec URL."""
    wandb_key: SecretName = ""
    """Where it names a key, the package that needs it has to be here."""
    listing: str = ""
    """Steps with the same one list an object store once, the first of them; empty: list it."""
    data: DataConfig = field(default_factory=DataConfig)
    """Chats need a template, which is looked for before anything is downloaded."""
    context: Count = default_of("context")
    prompt_file: str = ""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Its tasks have to be known."""
    logs: NonEmpty = default_of("logs")
    """The volume's folder of logs, which no run may be named like."""
    request: dict[str, Any] = field(default_factory=dict)
    """The parameters that define the run: compared with those of an earlier run of the name."""
    no_resume: bool = default_of("no_resume")
    check_only: bool = False
    """Say what would be refused, and change nothing: no probe of the volume, no download."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TokenizeConfig(StepConfig):
    """Make the store of tokenized contexts, or find the one that is there."""

    dataset: NonEmpty
    """Path on the volume or any fsspec URL."""
    listing: str = ""
    """As the fetch step has it."""
    model: NonEmpty
    """The base model's folder on the volume."""
    tokenizer: str = ""
    """The tokenizer's folder on the volume, where it is not the model's."""
    retokenize: bool = default_of("retokenize")
    sanitize: bool = default_of("sanitize")
    reorder: Order = ""
    random_seed: Seed = default_of("random_seed")
    sampling: Percent = default_of("sampling")
    eot_token: str = ""
    pad_token: str = ""
    boundary_token: str = default_of("boundary_token")
    boundary_index: BoundaryIndex = default_of("boundary_index")
    context: Count = default_of("context")
    train_ratio: Share = default_of("train_ratio")
    text_field: NonEmpty = default_of("text_field")
    """Key of the text in JSONL and parquet."""
    data: DataConfig = field(default_factory=DataConfig)
    """What the records are, and which of their tokens are trained."""
    workers: CountOrZero = 0
    """Processes that encode; 0: one for each core, at most four for memory's sake."""
    paranoid: bool = False
    """Read every file again instead of trusting size, mtime and inode."""
    skip: SkipConfig = field(default_factory=SkipConfig)
    """Documents that are not to be trained on; the store is the same, they are looked up here."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class FinetuneConfig(StepConfig):
    """Train the base model on a store, from the newest good checkpoint on."""

    model: NonEmpty
    """The base model's folder on the volume."""
    tokenizer: str = ""
    tokens: NonEmpty
    """The store's folder on the volume."""
    logs: NonEmpty = default_of("logs")
    wandb_key: SecretName = ""
    """Track on Weights & Biases; the key itself is in WANDB_API_KEY. Empty: don't."""
    project_id: NonEmpty = default_of("project_id")
    """Project there."""
    trust_remote_code: bool = default_of("trust_remote_code")
    tensorizer_uri: VolumePath = ""
    """A file on the volume, or an s3:// or https:// URL; empty: in the model's folder."""
    random_seed: Seed = default_of("random_seed")
    no_shuffle: bool = default_of("no_shuffle")
    prompt_file: str = ""
    prompt_every: CountOrZero = default_of("prompt_every")
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    learn_rate: PositiveOrZero = default_of("learn_rate")
    warmup_ratio: Share = default_of("warmup_ratio")
    epochs: Count = default_of("epochs")
    batch_size: BatchSize = default_of("batch_size")
    batch_size_divisor: Positive = default_of("batch_size_divisor")
    gradients: Count = default_of("gradients")
    """Micro-batches accumulated for one optimizer step."""
    zero_stage: ZeroStage = default_of("zero_stage")
    force_fp16: bool = default_of("force_fp16")
    save_steps: CountOrZero = default_of("save_steps")
    """Optimizer steps between two checkpoints; 0: only at the end."""
    processes: Count = 1
    """Training processes on a node: one for each GPU, or CPU processes."""
    nodes: Count = 1
    """Machines that train together: trainer/training/processes/nodes.py says how they meet."""
    precision: Literal["", "fp32", "bf16", "fp16"] = ""
    """Of weights in use and activations; empty: bf16 or fp16 on a GPU, fp32 on the CPU."""
    checkpoints: CheckpointsConfig = field(default_factory=CheckpointsConfig)
    lora: LoraConfig | None = None
    """None: all weights are trained."""
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    """Where the run would take more, training ends earlier, on a schedule shortened to that."""
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    """The curve of the learning rate, and an end before that of the epochs."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)
    """Where the store is of pairs."""
    kernels: KernelsConfig = field(default_factory=KernelsConfig)
    skip: SkipConfig = field(default_factory=SkipConfig)
    """Documents that are not trained on, see trainer/tokens/left_out.py."""
    grace_seconds: Positive = 120.0
    """Seconds between SIGTERM and the kill that follows: a save has to fit."""
    request: dict[str, Any] = field(default_factory=dict)
    """The parameters that define the run, for run.json."""
    no_resume: bool = default_of("no_resume")
    """Put an earlier run of this name aside and start over."""
    attempt: str = ""
    """Who asks (a flow run's id): one asker's `no_resume` starts over only once."""
    earlier_outcomes: list[dict[str, Any]] = field(default_factory=list)
    """Outcomes of the steps before this one, which first makes the run's folder."""
    plan: dict[str, Any] = field(default_factory=dict)
    """What was planned before anything began, for run.json."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EvaluateConfig(StepConfig):
    """Compare the base and the finetuned model on the held-out contexts."""

    model: NonEmpty
    """The base model's folder on the volume."""
    tokens: NonEmpty
    trust_remote_code: bool = default_of("trust_remote_code")
    tensorizer_uri: VolumePath = ""
    prompt_file: str = ""
    random_seed: Seed = default_of("random_seed")
    batch_size: BatchSize = default_of("batch_size")
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    preference: PreferenceConfig = field(default_factory=PreferenceConfig)
    """Where the store is of pairs."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ServeConfig(StepConfig):
    """Answer requests with a finetuned model."""

    model: NonEmpty
    """The model's folder on the volume, for instance `{run_name}/final`."""
    name: NonEmpty = "final"
    """The model's name in URLs."""
    model_digest: str = ""
    """Serve no other model than the one of this digest; empty: whatever is there."""
    host: NonEmpty = "127.0.0.1"
    port: Annotated[int, Ge(0), Le(65535)] = 0
    """0: a free one, written to `ready_file`."""
    port_variable: str = ""
    """Environment variable that goes before `port` where it is set: PORT, under Knative."""
    ready_file: str = ""
    """Written (JSON: url, pid, port) once the model has answered."""
    record_file: str = ""
    """Ends with who holds its stdin, unless this file names its `pid` by then; empty: never so."""
    trust_remote_code: bool = default_of("trust_remote_code")
    engine: ServingEngine = "builtin"
    engine_args: dict[str, str | int | float | bool] = field(default_factory=dict)
    """More arguments of vLLM's engine, by name."""
    tensorizer_uri: VolumePath = ""
    """Weights from this tensorizer file, a URL or in the model's folder; '': its safetensors."""
    max_total_tokens: CountOrZero = 0
    """Most tokens of prompt and answer together; 0: what the model can take."""
    max_batch: Count = 32
    """Sequences answered at a time."""
    max_queue: CountOrZero = 256
    """Sequences that may wait beyond those; more are told to come back (429)."""
    request_seconds: Positive = 600.0
    """Longest time from a request's arrival to the end of its answer."""
    api_key_variable: SecretName = ""
    """Environment variable with the key that clients must send; empty: they need none."""
    cors_origins: list[WebOrigin] = field(default_factory=list)
    """Web origins whose pages may ask."""
    adapters: dict[str, NonEmpty] = field(default_factory=dict)
    """Finished LoRA models on the volume, served by name beside `model` on the same base."""
    adapters_file: str = ""
    """Followed while serving: which adapters there are now, as adapters_record.py writes it."""

    def __post_init__(self) -> None:
        if self.adapters and self.engine != "builtin":
            raise ValueError(f"adapters needs engine='builtin' (got {self.engine!r}).")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DeployConfig(StepConfig):
    """Find what is to be served, or check the server of it and record that it takes over."""

    run: NonEmpty
    """The run that is served; `run_name` may be empty, so that finding leaves no outcome."""
    url: str = ""
    """The server to check; empty: only find the model."""
    name: NonEmpty = "final"
    """The model's name in URLs."""
    rollback: bool = False
    """The model that served before the one that serves now, instead of the run's newest."""
    serving_loss: float | None = None
    """Validation loss of the revision that serves now; None: there is none."""
    max_regression: PositiveOrZero = 0.0
    """How much worse than that the new one may be."""
    serving: dict[str, Any] = field(default_factory=dict)
    """What the server was made from, for the record."""
    api_key_variable: SecretName = ""
    """Environment variable with the server's API key; empty: it needs none."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ChampionConfig(StepConfig):
    """Say whether a series of retrainings has something new, judge its run, or record it."""

    series: RunName
    """Its name, which the names of its runs begin with."""
    action: Literal["look", "judge", "record"]
    model: NonEmpty
    """The base model's folder on the volume."""
    tokens: NonEmpty
    """The store's folder on the volume."""
    request: dict[str, Any] = field(default_factory=dict)
    """The parameters that define a run."""
    start_from: Literal["base", "last"] = "base"
    """What is trained: the base model, or the champion's final one."""
    trust_remote_code: bool = default_of("trust_remote_code")
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Whose `max_drop` a candidate may not exceed."""
    candidate: str = ""
    """The run to judge or record."""
    verdict: dict[str, Any] = field(default_factory=dict)
    """What judging came to, to be recorded."""
    replaced: str = ""
    """The run whose service was ended for the candidate's, as its history is to say."""
    retention: RetentionConfig = field(default_factory=RetentionConfig)
    """Which runs of the series stay once this one is decided on."""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class AgainConfig(StepConfig):
    """Repeat a run with something changed, as a command asks for it, where the volume is."""

    action: Literal["look", "forget", "blame", "replay"]
    """`look`: print what the run recorded."""
    run: NonEmpty
    """`run_name` stays empty: the run is only read, and has no outcome of this."""
    command: str = ""
    """Of `trainer.forgetting`: plan, begin, certify."""
    words: list[str] = field(default_factory=list)
    """What follows volume and run."""
    given: dict[str, Any] | None = None
    """What the process gets as a JSON file, its last word; None: nothing."""


STEP_CONFIGS: dict[str, type[StepConfig]] = {
    "plan": FetchConfig,
    "fetch": FetchConfig,
    "tokenize": TokenizeConfig,
    "finetune": FinetuneConfig,
    "evaluate": EvaluateConfig,
    "serve": ServeConfig,
    "deploy": DeployConfig,
    "champion": ChampionConfig,
    "again": AgainConfig,
}


def load_step_config(step: str, text: str) -> StepConfig:
    """Read the JSON configuration of `step`.

    Raises:
        RequestError: With every problem there is, each naming its key.
    """
    return load_json(STEP_CONFIGS[step], text, f"the {step} step's config")
