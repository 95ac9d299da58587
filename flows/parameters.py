"""Every parameter of the flow `finetune`: its type, range, default and description.

This class is where they stand once: the flow's signature and form, the command
line's help and the check of a request are all made from it. Loads no Prefect.
"""

import dataclasses
import inspect
import json
from collections.abc import Callable
from typing import Annotated, Any, Literal, get_type_hints

from annotated_types import MinLen
from pydantic import BaseModel, BeforeValidator, ConfigDict, TypeAdapter, WithJsonSchema

from infra.manifests_settings import VARIABLE, ClusterSettings, settings_from_environment
from trainer.errors import RequestError
from trainer.parameter_types import (
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
    Share,
    VolumeName,
    VolumePath,
    ZeroStage,
)
from trainer.topics import (
    BudgetConfig,
    CheckpointsConfig,
    KernelsConfig,
    LoraConfig,
    OptimizerConfig,
    ServingConfig,
)


def _from_object_or_text(topic: Any) -> BeforeValidator:
    """Takes a small typed model also as an object, or as the JSON text of one."""

    def make(value: Any) -> Any:
        if value is None or dataclasses.is_dataclass(value):
            return value
        text = value if isinstance(value, str) else json.dumps(value)
        return TypeAdapter(topic).validate_json(text)

    return BeforeValidator(make)


Checkpoints = Annotated[CheckpointsConfig, _from_object_or_text(CheckpointsConfig)]
Budget = Annotated[BudgetConfig, _from_object_or_text(BudgetConfig)]
Serving = Annotated[ServingConfig, _from_object_or_text(ServingConfig)]
Optimizer = Annotated[OptimizerConfig, _from_object_or_text(OptimizerConfig)]
Kernels = Annotated[KernelsConfig, _from_object_or_text(KernelsConfig)]
Lora = Annotated[LoraConfig | None, _from_object_or_text(LoraConfig)]


def _settings_given(value: Any) -> dict[str, Any]:
    """The settings as they were given, checked: those left out are the cluster's to decide."""
    text = value if isinstance(value, str) else json.dumps(value)
    TypeAdapter(ClusterSettings).validate_json(text)
    return json.loads(text)


Cluster = Annotated[
    dict[str, Any],
    BeforeValidator(_settings_given),
    WithJsonSchema(TypeAdapter(ClusterSettings).json_schema()),
]


class Parameters(BaseModel):
    """What `finetune` can be asked. Names and defaults are the reference workflow's."""

    # "1" for a number and 50256 for a token's id are what command lines and forms give.
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, coerce_numbers_to_str=True
    )

    # run
    run_name: RunName
    """Name of the run, of its folder and its endpoint: a DNS label of at most 40 characters."""
    pvc: VolumeName = "finetune-data"
    """Volume: a claim on Kubernetes, a folder of that name below --home locally."""
    region: str = "ORD1"
    """Region whose nodes run the steps; on Kubernetes only."""
    logs: Annotated[VolumePath, MinLen(1)] = "logs"
    """Folder on the volume for TensorBoard events and full logs."""
    project_id: NonEmpty = "huggingface"
    """Weights & Biases' project that metrics are filed under, where wandb_key is set."""
    random_seed: Seed = 42
    """Seed of everything drawn at random: order of data, dropout, samples (0 to 2^32-1)."""
    no_resume: bool = False
    """Put an earlier run of this name aside and start over."""

    # model
    model: Annotated[VolumePath, MinLen(1)] = "EleutherAI/gpt-neo-2.7B"
    """Base model: a folder on the volume, else a Hugging Face id."""
    tokenizer: VolumePath = ""
    """Tokenizer, if not the model's own: a folder on the volume, else a Hugging Face id."""
    trust_remote_code: bool = False
    """Let the model's repository run its own Python code."""
    tensorizer_uri: VolumePath = ""
    """Base weights in a file of CoreWeave's tensorizer: on the volume, or s3:// or https://."""

    # data
    dataset: Annotated[VolumePath, MinLen(1)] = "dataset"
    """Text to train on: a folder or file on the volume, or any fsspec URL (s3://...)."""
    retokenize: bool = False
    """Make the tokens anew even where they are there."""
    sanitize: bool = True
    """Put white space and line ends right before encoding."""
    reorder: Order = ""
    """Order of the files ('' is by name); `shuffle` draws an order of contexts instead."""
    no_shuffle: bool = False
    """Train in the order of the data instead of a drawn one."""
    sampling: Percent = 100
    """Percentage of the contexts to keep, spread evenly (0 to 100)."""
    eot_token: str = ""
    """End-of-text token, if not the tokenizer's: text, or id."""
    pad_token: str = ""
    """Padding token, if not the tokenizer's: text, or id."""
    boundary_token: str = "\\n"
    """Token after which a following context may begin: text (\\n is a newline), or id."""
    boundary_index: BoundaryIndex = -1
    """Where a following context begins: nearest boundary to this position; -1: the last one."""
    context: Count = 2048
    """Tokens in a context (>0)."""
    train_ratio: Share = 0.9
    """Share of the text to train on; the rest is held out for validation (0 to 1)."""

    # prompts
    prompt_file: VolumePath = ""
    """File on the volume with a prompt a line, to sample from as training goes."""
    prompt_every: CountOrZero = 0
    """Optimizer steps between samples; 0: at each checkpoint (>=0)."""
    prompt_tokens: Count = 200
    """Tokens generated for a sample (>0)."""
    prompt_samples: Count = 5
    """Samples for each prompt (>0)."""
    top_k: CountOrZero = 50
    """Sample among this many likeliest tokens; 0: all (>=0)."""
    top_p: Share = 0.95
    """Sample among the likeliest tokens of this total probability (0 to 1)."""
    temperature: Positive = 1.0
    """Below 1 samples are safer, above 1 wilder (>0)."""
    repetition_penalty: Positive = 1.1
    """Above 1 tokens that were used already get less likely (>0)."""

    # training
    learn_rate: PositiveOrZero = 5e-5
    """Highest learning rate, reached after the warm-up (>=0)."""
    warmup_ratio: Share = 0.1
    """Share of the steps in which the learning rate rises; then it falls to 0 (0 to 1)."""
    epochs: Count = 1
    """How often each context is seen (>0)."""
    batch_size: BatchSize = -1
    """Contexts in a micro-batch of one process; -1: work it out (>0, or -1)."""
    batch_size_divisor: Positive = 1.0
    """Divides the batch size that was worked out, for safety (>0)."""
    gradients: Count = 5
    """Micro-batches accumulated for one optimizer step (>0)."""
    zero_stage: ZeroStage = 3
    """What DeepSpeed's ZeRO spreads over processes (0 to 3: nothing to everything)."""
    force_fp16: bool = False
    """Train in fp16 where bf16 would be chosen."""
    save_steps: CountOrZero = 500
    """Optimizer steps between checkpoints; 0: only at the end (>=0)."""

    # deploy
    run_inference: bool = False
    """Leave the finetuned model served when the run ends."""
    inference_only: bool = False
    """Only serve what the run of this name left."""
    inference_gpu: str = "RTX_A5000"
    """GPU class to serve on; on Kubernetes only."""

    # resources
    trainer_gpu: str = "A40"
    """GPU class to train on; on Kubernetes only."""
    trainer_gpus: Count = 1
    """Training processes on a node: one for each GPU, or CPU processes (>0)."""
    trainer_cores: Count = 8
    """CPU cores for training; on Kubernetes only (>0)."""
    trainer_ram: Count = 192
    """Memory for training, in GiB; on Kubernetes only (>0)."""

    # images
    finetuner_image: NonEmpty = "finetune-steps"
    """Image of the steps; on Kubernetes only."""
    finetuner_tag: NonEmpty = "0.1.0"
    """Tag of the steps' image; on Kubernetes only."""

    # topics: each optional, as a JSON object on the command line
    text_field: NonEmpty = "text"
    """Key of the text in JSONL, and name of its column in parquet."""
    precision: Literal["", "fp32", "bf16", "fp16"] = ""
    """Of weights in use; '' is bf16 or fp16 on a GPU and fp32 on a CPU."""
    checkpoints: Checkpoints = CheckpointsConfig()
    """Which checkpoints stay: keep_last=2, keep_best=true, max_gib=0, every_minutes=0."""
    lora: Lora = None
    """Train adapters instead of all weights: rank=8, alpha=16, dropout=0, target_modules=[]."""
    optimizer: Optimizer = OptimizerConfig()
    """Adam: offload='' ('always' or 'never' in host memory; '': as needed), adam_bits=32 (or 8)."""
    kernels: Kernels = KernelsConfig()
    """How operations are carried out: compile=false, liger=false (Liger's, on a GPU alone)."""
    wandb_key: SecretName = ""
    """Secret with Weights & Biases' key: a Kubernetes Secret; here a variable or Prefect block."""
    cluster: Cluster = {}
    """Where and how Jobs run, over FINETUNE_CLUSTER: nodes=1, namespace, queue, secrets, ..."""
    budget: Budget = BudgetConfig()
    """What the plan may not exceed: max_dollars=0, max_hours=0 (0: no limit), deadline=''."""
    serving: Serving = ServingConfig()
    """How it is served: max_regression=0, kind='', min_replicas=0, max_replicas=1, gpus=1, ..."""

    @property
    def request(self) -> dict[str, Any]:
        """The parameters that define what is trained, and so what the run is."""
        return {
            name: value
            for name, value in self.model_dump().items()
            if name not in NOT_DEFINING and name != "run_name"
        }


# A run goes on with other values of these: where it runs, what is done with its result.
NOT_DEFINING = frozenset(
    "pvc region cluster logs project_id wandb_key no_resume retokenize run_inference "
    "inference_only inference_gpu trainer_gpu trainer_gpus trainer_cores trainer_ram "
    "finetuner_image finetuner_tag checkpoints budget serving".split()
)


def cluster_settings(parameters: Parameters) -> ClusterSettings:
    """The parameter `cluster` over what FINETUNE_CLUSTER says.

    Raises:
        RequestError: One of them is wrong.
    """
    try:
        return settings_from_environment(parameters.cluster)
    except ValueError as error:
        raise RequestError(*(f"{VARIABLE}: {line}" for line in str(error).splitlines())) from error


def takes(model: type[BaseModel]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a function `(**given)` the flat, typed and documented signature of `model`.

    Prefect makes a flow's form and its check of parameters from the signature and
    from the `Args:` of the docstring.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        fields = model.model_fields
        types = get_type_hints(model, include_extras=True)
        function.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter(
                    name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=inspect.Parameter.empty if field.is_required() else field.default,
                    annotation=types[name],
                )
                for name, field in fields.items()
            ]
        )
        described = "\n".join(f"    {name}: {f.description}" for name, f in fields.items())
        function.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\nArgs:\n{described}\n"
        return function

    return decorate
