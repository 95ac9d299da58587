"""The configuration of each step, and the types and ranges of every parameter.

One frozen dataclass a step, loaded strictly: an unknown key, a wrong type and a
value out of range are reported all at once. The type aliases are shared with the
flow's parameters, so a range stands in one place. Loads no torch: importing this
costs pydantic alone.
"""

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import AfterValidator, ConfigDict, StringConstraints, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from trainer.errors import RequestError

# --- types and ranges -------------------------------------------------------------------

DNS_LABEL = r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$"

RunName = Annotated[str, StringConstraints(pattern=DNS_LABEL)]
VolumeName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")]
NonEmpty = Annotated[str, MinLen(1)]
Seed = Annotated[int, Ge(0), Le(2**32 - 1)]
Count = Annotated[int, Gt(0)]
CountOrZero = Annotated[int, Ge(0)]
Percent = Annotated[int, Ge(0), Le(100)]
Share = Annotated[float, Ge(0), Le(1)]
Positive = Annotated[float, Gt(0)]
PositiveOrZero = Annotated[float, Ge(0)]
ZeroStage = Annotated[int, Ge(0), Le(3)]
Order = Literal[
    "",
    "size_ascending",
    "size_descending",
    "name_ascending",
    "name_descending",
    "random",
    "shuffle",
    "none",
]
ServingEngine = Literal["builtin", "vllm"]


def _not_zero(value: int) -> int:
    if value == 0:
        raise ValueError("must be greater than 0, or -1 to work it out")
    return value


def _on_volume(value: str) -> str:
    if value.startswith("/") or ".." in value.split("/"):
        raise ValueError("leads out of the volume")
    return value


# Relative to the volume's root; links that lead out of it are refused where they are followed.
VolumePath = Annotated[str, AfterValidator(_on_volume)]
BatchSize = Annotated[int, Ge(-1), AfterValidator(_not_zero)]
BoundaryIndex = Annotated[int, Ge(-1)]


def _no_secret(value: str) -> str:
    """Names of Secrets and variables are short words; keys are long, and must not be shown."""
    is_long = len(value) >= 32 and "-" not in value
    if is_long or not re.fullmatch(r"[\w.-]{0,253}", value):
        raise PydanticCustomError("secret", "looks like a key, and is not shown")
    return value


# Of a Kubernetes Secret; locally of an environment variable or a Prefect Secret block.
SecretName = Annotated[str, AfterValidator(_no_secret)]

# --- steps ------------------------------------------------------------------------------

_STRICT = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
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


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class FetchConfig(StepConfig):
    """Check what needs the volume to be checked, and bring the base model there."""

    model: NonEmpty
    """A folder on the volume, else a Hugging Face id, `org/name` or `org/name@revision`."""
    tokenizer: str = ""
    """Likewise; empty: the model's own."""
    trust_remote_code: bool = False
    """Run code in the model's folder; from the hub it needs a commit, `org/name@COMMIT`."""
    tensorizer_uri: VolumePath = ""
    """Where tensorizer's file with the model's weights is; empty: in the model's folder."""
    dataset: NonEmpty
    """Path on the volume or any fsspec URL."""
    wandb_key: SecretName = ""
    """Where it names a key, the package that needs it has to be here."""
    listing: str = ""
    """Steps with the same one list an object store once, the first of them; empty: list it."""
    context: Count = 2048
    prompt_file: str = ""
    logs: NonEmpty = "logs"
    """The volume's folder of logs, which no run may be named like."""
    request: dict[str, Any] = field(default_factory=dict)
    """The parameters that define the run: compared with those of an earlier run of the name."""
    no_resume: bool = False
    check_only: bool = False
    """Say what would be refused, and change nothing: no probe of the volume, no download."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
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
    retokenize: bool = False
    sanitize: bool = True
    reorder: Order = ""
    random_seed: Seed = 42
    sampling: Percent = 100
    eot_token: str = ""
    pad_token: str = ""
    boundary_token: str = "\\n"
    boundary_index: BoundaryIndex = -1
    context: Count = 2048
    train_ratio: Share = 0.9
    text_field: NonEmpty = "text"
    """Key of the text in JSONL and parquet."""
    workers: CountOrZero = 0
    """Processes that encode; 0: one for each core, at most four for memory's sake."""
    paranoid: bool = False
    """Read every file again instead of trusting size, mtime and inode."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class SamplingConfig:
    """How text is generated from a prompt."""

    prompt_tokens: Count = 200
    prompt_samples: Count = 5
    top_k: CountOrZero = 50
    top_p: Share = 0.95
    temperature: Positive = 1.0
    repetition_penalty: Positive = 1.1


@dataclass(frozen=True, kw_only=True, config=_STRICT)
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


@dataclass(frozen=True, kw_only=True, config=_STRICT)
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


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class OptimizerConfig:
    """Adam, and where it is."""

    offload: Literal["", "never", "always"] = ""
    """Whether its numbers live in host memory (DeepSpeed's CPU Adam); '': where a GPU is full."""
    adam_bits: Literal[32, 8] = 32
    """Of Adam's two moments; 8 takes a quarter of the memory, and goes without offload."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class KernelsConfig:
    """How the model's operations are carried out."""

    compile: bool = False
    """Have torch.compile write them: minutes at the start, faster steps. Not with zero_stage 3
    over several processes."""
    liger: bool = False
    """Take Liger's fused ones, where it knows the architecture. On a GPU alone."""


def _moment(value: str) -> str:
    if value:
        datetime.fromisoformat(value)
    return value


Moment = Annotated[str, AfterValidator(_moment)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
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


@dataclass(frozen=True, kw_only=True, config=_STRICT)
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


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class FinetuneConfig(StepConfig):
    """Train the base model on a store, from the newest good checkpoint on."""

    model: NonEmpty
    """The base model's folder on the volume."""
    tokenizer: str = ""
    tokens: NonEmpty
    """The store's folder on the volume."""
    logs: NonEmpty = "logs"
    wandb_key: SecretName = ""
    """Track on Weights & Biases; the key itself is in WANDB_API_KEY. Empty: don't."""
    project_id: NonEmpty = "huggingface"
    """Project there."""
    trust_remote_code: bool = False
    tensorizer_uri: VolumePath = ""
    """A file on the volume, or an s3:// or https:// URL; empty: in the model's folder."""
    random_seed: Seed = 42
    no_shuffle: bool = False
    prompt_file: str = ""
    prompt_every: CountOrZero = 0
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    learn_rate: PositiveOrZero = 5e-5
    warmup_ratio: Share = 0.1
    epochs: Count = 1
    batch_size: BatchSize = -1
    batch_size_divisor: Positive = 1.0
    gradients: Count = 5
    """Micro-batches accumulated for one optimizer step."""
    zero_stage: ZeroStage = 3
    force_fp16: bool = False
    save_steps: CountOrZero = 500
    """Optimizer steps between two checkpoints; 0: only at the end."""
    processes: Count = 1
    """Training processes on a node: one for each GPU, or CPU processes."""
    nodes: Count = 1
    """Machines that train together: trainer/training/nodes.py says how they meet."""
    precision: Literal["", "fp32", "bf16", "fp16"] = ""
    """Of weights in use and activations; empty: bf16 or fp16 on a GPU, fp32 on the CPU."""
    checkpoints: CheckpointsConfig = field(default_factory=CheckpointsConfig)
    lora: LoraConfig | None = None
    """None: all weights are trained."""
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    """Where the run would take more, training ends earlier, its learning rate at 0."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    kernels: KernelsConfig = field(default_factory=KernelsConfig)
    grace_seconds: Positive = 120.0
    """Seconds between SIGTERM and the kill that follows: a save has to fit."""
    request: dict[str, Any] = field(default_factory=dict)
    """The parameters that define the run, for run.json."""
    no_resume: bool = False
    """Put an earlier run of this name aside and start over."""
    attempt: str = ""
    """Who asks (a flow run's id): one asker's `no_resume` starts over only once."""
    earlier_outcomes: list[dict[str, Any]] = field(default_factory=list)
    """Outcomes of the steps before this one, which first makes the run's folder."""
    plan: dict[str, Any] = field(default_factory=dict)
    """What was planned before anything began, for run.json."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class EvaluateConfig(StepConfig):
    """Compare the base and the finetuned model on the held-out contexts."""

    model: NonEmpty
    """The base model's folder on the volume."""
    tokens: NonEmpty
    trust_remote_code: bool = False
    tensorizer_uri: VolumePath = ""
    prompt_file: str = ""
    random_seed: Seed = 42
    batch_size: BatchSize = -1
    sampling: SamplingConfig = field(default_factory=SamplingConfig)


@dataclass(frozen=True, kw_only=True, config=_STRICT)
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
    trust_remote_code: bool = False
    engine: ServingEngine = "builtin"
    tensorizer_uri: str = ""
    """Weights from this tensorizer file, a URL or in the model's folder; '': its safetensors."""
    max_total_tokens: CountOrZero = 0
    """Most tokens of prompt and answer together; 0: what the model can take."""
    max_batch: Count = 32
    """Sequences answered at a time."""
    max_queue: CountOrZero = 256
    """Sequences that may wait beyond those; more are told to come back (429)."""
    request_seconds: Positive = 600.0
    """Longest time from a request's arrival to the end of its answer."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
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


@dataclass(frozen=True, kw_only=True, config=_STRICT)
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
    trust_remote_code: bool = False
    candidate: str = ""
    """The run to judge or record."""
    verdict: dict[str, Any] = field(default_factory=dict)
    """What judging came to, to be recorded."""


STEP_CONFIGS: dict[str, type[StepConfig]] = {
    "plan": FetchConfig,
    "fetch": FetchConfig,
    "tokenize": TokenizeConfig,
    "finetune": FinetuneConfig,
    "evaluate": EvaluateConfig,
    "serve": ServeConfig,
    "deploy": DeployConfig,
    "champion": ChampionConfig,
}

# --- loading ----------------------------------------------------------------------------

Config = TypeVar("Config")


def load_step_config(step: str, text: str) -> StepConfig:
    """Read the JSON configuration of `step`.

    Raises:
        RequestError: With every problem there is, each naming its key.
    """
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        raise RequestError(f"the {step} step's config is not JSON ({error})") from error
    return _validated(STEP_CONFIGS[step], lambda adapter: adapter.validate_json(text))


def load_parameters(cls: type[Config], given: Mapping[str, Any]) -> Config:
    """Make `cls` from what a user typed; numbers may come as strings.

    Raises:
        RequestError: With every problem there is, each naming its parameter.
    """
    return _validated(cls, lambda adapter: adapter.validate_python(dict(given)))


def _validated(cls: type[Config], validate: Any) -> Config:
    adapter = TypeAdapter(cls)
    try:
        return validate(adapter)
    except ValidationError as error:
        known = list(get_type_hints(cls))
        raise RequestError(*(_sentence(detail, known) for detail in error.errors())) from error


def _sentence(detail: Mapping[str, Any], known: Iterable[str]) -> str:
    """One problem found by pydantic, in the words of DESIGN's error form."""
    # pydantic names the dataclass too where a nested value is wrong; users never see that name.
    name = ".".join(str(part) for part in detail["loc"]) or "the request"
    if detail["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
        return f"{name} is not a parameter." + (f" Did you mean {near[0]}?" if near else "")
    if detail["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{name} is required."
    if detail["type"] == "secret":
        return (
            f"{name} {detail['msg']}. It is the name of a Kubernetes Secret, or here of an "
            "environment variable or Prefect Secret block, that holds the key."
        )
    got = detail["input"]
    if detail.get("ctx", {}).get("pattern") == DNS_LABEL:
        return (
            f"{name} is not a DNS label of at most 40 characters (got {got!r}). "
            "Use lower-case letters, digits and '-', beginning and ending with a letter or digit."
        )
    expected = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if "(got " in expected:  # a topic's own check says it all, and may have a key to hide
        return f"{name}.{expected}"
    return f"{name} {expected} (got {got!r})."


# --- paths on the volume ----------------------------------------------------------------

URL = re.compile(r"^[a-z][a-z0-9+.-]*(::|://)")


def is_url(path: str) -> bool:
    """Whether a dataset is to be read through fsspec rather than from the volume."""
    return URL.match(path) is not None


def path_on_volume(volume: str | Path, name: str, path: str) -> Path:
    """The place of `path`, which parameter `name` holds, on the volume.

    Args:
        volume: The volume's root.
        name: The parameter's name, for the error.
        path: Relative to the root; need not exist.
    Raises:
        RequestError: It is absolute or leads out of the volume, by `..` or a symlink.
    """
    root = Path(volume).resolve()
    resolved = (root / path).resolve()
    if Path(path).is_absolute() or ".." in Path(path).parts or not resolved.is_relative_to(root):
        raise RequestError(
            f"{name} leads out of the volume (got {path!r}). "
            f"Paths are relative to {root}, without '..' and links that leave it."
        )
    return root / path


def place_of(volume: str | Path, name: str, uri: str) -> str:
    """Where the file is that parameter `name` holds: a URL as it is, else a path on the volume."""
    return uri if is_url(uri) or not uri else str(path_on_volume(volume, name, uri))
