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
from pydantic import BaseModel, BeforeValidator, ConfigDict, TypeAdapter, model_validator

from trainer.contract.addresses import masked
from trainer.contract.cluster_request import Cluster, cluster_settings_over
from trainer.contract.cluster_settings import ClusterSettings
from trainer.contract.image_reference import with_tag_apart
from trainer.contract.later_keys import without_later_defaults
from trainer.contract.pair_rules import pair_problem
from trainer.contract.parameter_types import (
    BatchSize,
    BoundaryIndex,
    Count,
    CountOrZero,
    GpuClass,
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
    ServingConfig,
    SkipConfig,
)
from trainer.contract.upstream_names import hint_for


def _from_object_or_text(topic: Any) -> BeforeValidator:
    """Takes a small typed model also as an object, or as the JSON text of one."""

    def make(value: Any) -> Any:
        if value is None or dataclasses.is_dataclass(value):
            return value
        text = value if isinstance(value, str) else json.dumps(value)
        return TypeAdapter(topic).validate_json(text)

    return BeforeValidator(make)


DEFAULT_TAG = "0.2.0"  # the version in pyproject.toml

Data = Annotated[DataConfig, _from_object_or_text(DataConfig)]
Checkpoints = Annotated[CheckpointsConfig, _from_object_or_text(CheckpointsConfig)]
Budget = Annotated[BudgetConfig, _from_object_or_text(BudgetConfig)]
Evaluation = Annotated[EvaluationConfig, _from_object_or_text(EvaluationConfig)]
Serving = Annotated[ServingConfig, _from_object_or_text(ServingConfig)]
Schedule = Annotated[ScheduleConfig, _from_object_or_text(ScheduleConfig)]
Preference = Annotated[PreferenceConfig, _from_object_or_text(PreferenceConfig)]
Optimizer = Annotated[OptimizerConfig, _from_object_or_text(OptimizerConfig)]
Kernels = Annotated[KernelsConfig, _from_object_or_text(KernelsConfig)]
Retention = Annotated[RetentionConfig, _from_object_or_text(RetentionConfig)]
Skip = Annotated[SkipConfig, _from_object_or_text(SkipConfig)]
Lora = Annotated[LoraConfig | None, _from_object_or_text(LoraConfig)]


class Parameters(BaseModel):
    """What `finetune` can be asked. Names and defaults are the reference workflow's.

    They stand in the order of the form and of the lists of the command line.
    """

    # "1" for a number and 50256 for a token's id are what command lines and forms give.
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, coerce_numbers_to_str=True
    )

    # what a run is
    run_name: RunName
    """Name of the run, of its folder and its endpoint: a DNS label of at most 40 characters."""
    model: Annotated[VolumePath, MinLen(1)] = "EleutherAI/gpt-neo-2.7B"
    """Base model: a folder on the volume, else a Hugging Face id."""
    dataset: Annotated[VolumePath, MinLen(1)] = "dataset"
    """Text to train on: a folder or file on the volume, or any fsspec URL (s3://...)."""

    # what people change
    context: Count = 2048
    """Tokens in a context (>0)."""
    epochs: Count = 1
    """How often each context is seen (>0)."""
    learn_rate: PositiveOrZero = 5e-5
    """Highest learning rate, reached after the warm-up (>=0)."""
    batch_size: BatchSize = -1
    """Contexts in a micro-batch of one process; -1: work it out (>0, or -1)."""
    gradients: Count = 5
    """Micro-batches accumulated for one optimizer step (>0)."""
    lora: Lora = None
    """Train adapters instead of all weights: rank=8, alpha=16, dropout=0, target_modules=[], ..."""
    data: Data = DataConfig()
    """Records and mixtures: shape='', train_on=assistant, packing='', weights={}, replay='', ..."""
    train_ratio: Share = 0.9
    """Share of the text to train on; the rest is held out for validation (0 to 1)."""
    save_steps: CountOrZero = 500
    """Optimizer steps between checkpoints; 0: only at the end (>=0)."""
    run_inference: bool = False
    """Leave the finetuned model served when the run ends."""

    # run
    pvc: VolumeName = "finetune-data"
    """Volume: a claim on Kubernetes, a folder of that name below --home locally."""
    logs: Annotated[VolumePath, MinLen(1)] = "logs"
    """Folder on the volume for TensorBoard events and full logs."""
    random_seed: Seed = 42
    """Seed of everything drawn at random: order of data, dropout, samples (0 to 2^32-1)."""
    no_resume: bool = False
    """Put an earlier run of this name aside and start over."""

    # model
    tokenizer: VolumePath = ""
    """Tokenizer, if not the model's own: a folder on the volume, else a Hugging Face id."""
    trust_remote_code: bool = False
    """Let the model's repository run its own Python code."""
    tensorizer_uri: VolumePath = ""
    """Base weights in a file of CoreWeave's tensorizer: on the volume, or s3:// or https://."""
    precision: Literal["", "fp32", "bf16", "fp16"] = ""
    """Of weights in use; '' is bf16 or fp16 on a GPU and fp32 on a CPU."""

    # data
    text_field: NonEmpty = "text"
    """Key of the text in JSONL, and name of its column in parquet."""
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
    skip: Skip = SkipConfig()
    """Documents that are not trained on, all else the same: documents=[] (paths), sha256=[]."""

    # training
    trainer_gpus: Count = 1
    """Training processes on a node: one for each GPU, or CPU processes (>0)."""
    warmup_ratio: Share = 0.1
    """Share of the steps in which the learning rate rises (0 to 1); `schedule` says the rest."""
    schedule: Schedule = ScheduleConfig()
    """Rate: kind=linear (or cosine, constant, wsd), warmup_steps=0, min_rate=0, max_steps=0, ..."""
    preference: Preference = PreferenceConfig()
    """Pairs of answers (data.shape=preference), trained by DPO: beta=0.1."""
    optimizer: Optimizer = OptimizerConfig()
    """Adam: weight_decay=0, beta1=0.9, beta2=0.999, eps=1e-8, clip=1, offload='', adam_bits=32."""
    batch_size_divisor: Positive = 1.0
    """Divides the batch size that was worked out, for safety (>0)."""
    zero_stage: ZeroStage = 3
    """What DeepSpeed's ZeRO spreads over processes (0 to 3: nothing to everything)."""
    force_fp16: bool = False
    """Train in fp16 where bf16 would be chosen."""
    kernels: Kernels = KernelsConfig()
    """How operations are carried out: compile=false, liger=false (Liger's, on a GPU alone)."""
    checkpoints: Checkpoints = CheckpointsConfig()
    """Which checkpoints stay: keep_last=2, keep_best=true, max_gib=0, keep_every=0, ..."""

    # prompts
    prompt_file: VolumePath = ""
    """File on the volume with a prompt a line, to sample from as training goes."""
    prompt_every: CountOrZero = 0
    """Optimizer steps between samples; 0: at each checkpoint (>=0)."""
    prompt_tokens: CountOrZero = 200
    """Tokens generated for a sample; 0: no samples are written (>=0)."""
    prompt_samples: CountOrZero = 5
    """Samples for each prompt; 0: none (>=0)."""
    top_k: CountOrZero = 50
    """Sample among this many likeliest tokens; 0: all (>=0)."""
    top_p: Share = 0.95
    """Sample among the likeliest tokens of this total probability (0 to 1)."""
    temperature: Positive = 1.0
    """Below 1 samples are safer, above 1 wilder (>0)."""
    repetition_penalty: Positive = 1.1
    """Above 1 tokens that were used already get less likely (>0)."""

    # what becomes of it
    evaluation: Evaluation = EvaluationConfig()
    """lm-eval's tasks on both models: tasks=[], limit=0, include_path='', max_drop=null, ..."""
    serving: Serving = ServingConfig()
    """How it is served: max_regression=0, kind='', min_replicas=0, max_replicas=1, gpus=1, ..."""
    inference_only: bool = False
    """Only serve what the run of this name left."""
    budget: Budget = BudgetConfig()
    """What the plan may not exceed: max_dollars=0, max_hours=0 (0: no limit), deadline=''."""
    project_id: NonEmpty = "huggingface"
    """Project at the trackers (experiment at MLflow) that metrics are filed under."""
    wandb_key: SecretName = ""
    """Secret with Weights & Biases' key: a Kubernetes Secret; here a variable or Prefect block."""

    # on Kubernetes only: see OF_CLUSTERS in flows/without_effect.py
    region: str = ""
    """On Kubernetes only: region whose nodes run the steps, as US-EAST-01; '': any node."""
    trainer_gpu: GpuClass = "A40"
    """On Kubernetes only: GPU class to train on, or none: train on CPUs."""
    trainer_cores: Count = 8
    """On Kubernetes only: CPU cores for training (>0)."""
    trainer_ram: Count = 192
    """On Kubernetes only: memory for training, in GiB (>0)."""
    inference_gpu: GpuClass = "RTX_A5000"
    """On Kubernetes only: GPU class to serve on, or none: serve on CPUs."""
    finetuner_image: NonEmpty = "finetune-steps"
    """On Kubernetes only: image of the steps, or NAME:TAG, or NAME@sha256:..."""
    finetuner_tag: NonEmpty = DEFAULT_TAG
    """On Kubernetes only: tag of the steps' image."""
    cluster: Cluster = {}
    """On Kubernetes only: nodes, queue, ... of Jobs; left out: as FINETUNE_CLUSTER says."""

    @model_validator(mode="before")
    @classmethod
    def _split_image(cls, given: Any) -> Any:
        return with_tag_apart(given, "finetuner_image", "finetuner_tag", DEFAULT_TAG)

    @model_validator(mode="after")
    def _check_mixture(self) -> "Parameters":
        """Hold the topics to each other that say what is mixed."""
        data = self.data
        if data.weights and self.dataset not in data.weights:
            raise ValueError(
                f"data.weights does not name the dataset (got {', '.join(data.weights)}). Give "
                f"{masked(self.dataset)!r} its share too, or set dataset to one of them."
            )
        if data.is_mixture and not self.skip.is_empty:
            raise ValueError(
                f"skip does not go with a mixture (got data.weights={data.weights}, "
                f"data.replay={data.replay!r}). Take the documents out of the folders, or leave "
                "skip out."
            )
        if self.evaluation.max_forgetting is not None and not data.replay:
            raise ValueError(
                "evaluation.max_forgetting has no effect without data.replay (got "
                f"{self.evaluation.max_forgetting}). Leave it out, or name general text."
            )
        return self

    @model_validator(mode="after")
    def _check_preference(self) -> "Parameters":
        """Hold the topics to each other that pairs of answers concern."""
        if problem := pair_problem(self.data, self.preference, self.lora, self.tensorizer_uri):
            raise ValueError(problem)
        return self

    @classmethod
    def hint_for(cls, name: str) -> str:
        """What to do instead of the upstream workflow's parameter; empty: it is none of its."""
        return hint_for(name, cls.model_fields)

    @property
    def request(self) -> dict[str, Any]:
        """The parameters that define what is trained, and so what the run is.

        Addresses are without their query strings: this is recorded, compared and shown.
        """
        defining = {
            name: masked(value) if name in ADDRESSES else value
            for name, value in self.model_dump().items()
            if name not in NOT_DEFINING and name != "run_name"
        }
        return without_later_defaults(defining)


FIRST = ("run_name", "model", "dataset")  # on the form

ADDRESSES = ("dataset", "tensorizer_uri")

# A run continues with other values of these: where it runs, what is done with its result.
NOT_DEFINING = frozenset(
    "pvc region cluster logs project_id wandb_key no_resume retokenize run_inference "
    "inference_only inference_gpu trainer_gpu trainer_gpus trainer_cores trainer_ram "
    "finetuner_image finetuner_tag checkpoints budget evaluation serving retention".split()
)


def cluster_settings(parameters: Parameters) -> ClusterSettings:
    """The parameter `cluster` over what FINETUNE_CLUSTER says.

    Raises:
        RequestError: FINETUNE_CLUSTER is wrong.
    """
    return cluster_settings_over(parameters.cluster)


def form_order(model: type[Parameters]) -> list[str]:
    """The fields of `model` as a form shows them: a flow's own follow those that every run has."""
    own = [name for name in model.model_fields if name not in Parameters.model_fields]
    rest = [name for name in Parameters.model_fields if name not in FIRST]
    return [*FIRST, *own, *rest]


def takes(model: type[Parameters]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a function `(**given)` the flat, typed and documented signature of `model`.

    Prefect makes a flow's form and its check of parameters from the signature and
    from the `Args:` of the docstring.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        fields = {name: model.model_fields[name] for name in form_order(model)}
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


def default_of(name: str) -> Any:
    """What the parameter is where nobody gives it, for the config of a step that has it too."""
    return Parameters.model_fields[name].default
