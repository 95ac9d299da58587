"""How much memory training takes, part by part, and which setting fits: pure arithmetic.

Used on both sides of the house: training picks its micro-batch with it when
`batch_size=-1`, and `finetune plan` says beforehand what a run will need. So it
imports the standard library alone and stands in trainer, where flows may read it.

The formulas follow DeepSpeed 0.19 and this project's engine: bf16 or fp16 weights
with an fp32 copy and two fp32 moments for Adam; the loss in chunks; fused attention.
`REFERENCE` describes the reference's way, whose published memory they are held to.

Source: ZeRO (arXiv 1910.02054) for the partitions; Korthikanti et al. (arXiv
2205.05198) for activations, with the tensors that transformers 5.23 really keeps.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from trainer.model_shape import ModelShape

GIB = 2**30
Precision = Literal["fp32", "bf16", "fp16"]
WEIGHT_BYTES: Mapping[str, int] = {"fp32": 4, "bf16": 2, "fp16": 2}

ADAM_BYTES = 12  # a parameter: fp32 copy and two fp32 moments
GRADIENT_BYTES_ON_HOST = 4  # fp32, where DeepSpeed's CPU Adam reads it
REDUCE_BUCKET = 500_000_000  # numbers; DeepSpeed's default, allocated whole at stages 2 and 3
MAX_LIVE_PARAMETERS = 1_000_000_000  # gathered at a time at stage 3; DeepSpeed's default
LOSS_CHUNK = 2**24  # logits at a time, see trainer/training/loss.py
CONTEXT_BYTES = int(1.2 * GIB)  # CUDA context, cuBLAS and NCCL workspaces
PROCESS_BYTES = 4 * GIB  # host memory of Python, torch and CUDA's libraries
FRAGMENTATION = 0.25  # of what comes and goes in a step, kept by torch's allocator
USABLE_SHARE = 0.85  # of a GPU: beyond it one odd batch ends the run
SATURATING_TOKENS = 8192  # in a micro-batch: a larger one makes no GPU faster
BACKWARD_SHARE = 0.5  # gradients alive beside a layer's activations in its backward pass


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a model is trained, as far as memory and time depend on it."""

    context: int
    batch_size: int = 1
    """Contexts in a micro-batch of one process."""
    zero_stage: int = 3
    processes: int = 1
    """Training processes in all: one for each GPU."""
    processes_per_node: int = 1
    precision: Precision = "bf16"
    offload: bool = False
    """Whether optimizer and gradients live in host memory."""
    checkpointed_layers: int | None = None
    """Layers that are computed again in the backward pass; None: all."""
    fused_attention: bool = True
    chunked_loss: bool = True
    on_gpu: bool = True
    """False: processes on a CPU, whose "GPU memory" is the host's."""

    @property
    def tokens(self) -> int:
        """Tokens in a micro-batch."""
        return self.batch_size * self.context

    def recomputed(self, shape: ModelShape) -> int:
        return shape.layers if self.checkpointed_layers is None else self.checkpointed_layers

    def share(self, from_stage: int) -> int:
        """Over how many processes something is spread that ZeRO spreads from a stage on."""
        return self.processes if self.zero_stage >= from_stage else 1


REFERENCE = Setting(
    context=2048,
    batch_size=4,
    precision="fp16",
    offload=True,
    fused_attention=False,
    chunked_loss=False,
)
"""The reference's published run: Hugging Face's Trainer, eager attention, whole logits."""


def gpu_parts(shape: ModelShape, setting: Setting) -> dict[str, int]:
    """Bytes on each GPU at the peak of a step, by what they hold."""
    weight = WEIGHT_BYTES[setting.precision]
    parts = {
        "weights": shape.parameters * weight // setting.share(3),
        "gathered weights": _gathered(shape, setting) * weight,
        "gradients": _gpu_gradients(shape, setting) * weight,
        "optimizer": 0 if setting.offload else _adam(shape, setting),
        "activations kept": _kept(shape, setting),
        "layer at work": int(_layer(shape, setting) * (1 + BACKWARD_SHARE)),
        "loss": _loss(shape, setting),
    }
    passing = parts["activations kept"] + parts["layer at work"] + parts["loss"]
    if setting.on_gpu:
        parts["allocator"] = int(FRAGMENTATION * passing)
        parts["CUDA"] = CONTEXT_BYTES
    return parts


def host_parts(shape: ModelShape, setting: Setting) -> dict[str, int]:
    """Bytes of host memory on each node, by what they hold."""
    parts = {"processes": PROCESS_BYTES * setting.processes_per_node}
    if setting.offload:
        held = shape.parameters * setting.processes_per_node // setting.share(1)
        parts["optimizer"] = ADAM_BYTES * held
        parts["gradients"] = GRADIENT_BYTES_ON_HOST * held
        # DeepSpeed keeps the gradients as they come from the GPU too, in pinned memory.
        parts["pinned gradients"] = WEIGHT_BYTES[setting.precision] * held
    return parts


def gpu_bytes(shape: ModelShape, setting: Setting) -> int:
    """Bytes on each GPU at the peak of a step."""
    return sum(gpu_parts(shape, setting).values())


def host_bytes(shape: ModelShape, setting: Setting) -> int:
    """Bytes of host memory on each node."""
    return sum(host_parts(shape, setting).values())


def checkpoint_bytes(shape: ModelShape) -> int:
    """Size of a checkpoint: fp32 weights and both moments, whatever the precision."""
    return ADAM_BYTES * shape.parameters


def final_bytes(shape: ModelShape, precision: Precision = "bf16") -> int:
    """Size of the finished model's weights."""
    return WEIGHT_BYTES[precision] * shape.parameters


# --- parts ------------------------------------------------------------------------------


def _adam(shape: ModelShape, setting: Setting) -> int:
    # In fp32 the weights themselves are what Adam updates.
    each = ADAM_BYTES - (4 if setting.precision == "fp32" else 0)
    return shape.parameters * each // setting.share(1)


def _gathered(shape: ModelShape, setting: Setting) -> int:
    """Numbers that stage 3 gathers beside its own share; one process has all of them."""
    if setting.zero_stage < 3 or setting.processes == 1:
        return 0
    return min(MAX_LIVE_PARAMETERS, shape.parameters)


def _gpu_gradients(shape: ModelShape, setting: Setting) -> int:
    """Numbers: the accumulated gradients, the bucket they pass through, and the newest."""
    passing = 2 * shape.largest_tensor
    if setting.zero_stage >= 2 and setting.on_gpu:  # on a CPU its pages are never touched
        passing += REDUCE_BUCKET
    if setting.offload and setting.zero_stage >= 1:
        return passing
    return passing + shape.parameters // setting.share(2)


def _kept(shape: ModelShape, setting: Setting) -> int:
    """Activations kept from the forward pass for the backward pass."""
    recomputed = setting.recomputed(shape)
    inputs = setting.tokens * shape.width * WEIGHT_BYTES[setting.precision]
    return recomputed * inputs + (shape.layers - recomputed) * _layer(shape, setting)


def _layer(shape: ModelShape, setting: Setting) -> int:
    """Activations of one layer that its backward pass needs.

    Of width D: input, normed input, output of attention; queries, keys and values;
    of the inner width I: what goes in and out of the activation and, as transformers
    writes GELU out in steps, three between; gated: gate, its activation, up, product.
    """
    queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    numbers = 3 * shape.width + queries + 2 * keys + shape.inner * (4 if shape.gated else 5)
    size = setting.tokens * numbers * WEIGHT_BYTES[setting.precision]
    if not setting.fused_attention:
        # Scores and softmax in fp32, scaled scores in fp32, probabilities: all T x T.
        each = 12 + WEIGHT_BYTES[setting.precision]
        size += setting.tokens * setting.context * shape.heads * each
    return size


def _loss(shape: ModelShape, setting: Setting) -> int:
    weight = WEIGHT_BYTES[setting.precision]
    hidden = setting.tokens * shape.width * weight
    if setting.chunked_loss:
        chunk = min(LOSS_CHUNK, setting.tokens * shape.vocabulary)
        # Logits, fp32 log-probabilities and their cast; the gradient of the output layer.
        return chunk * (2 * weight + 4) + hidden + shape.embedding_parameters * weight
    # Logits and their gradient; in fp32: logits, shifted copy, log-probabilities, gradient.
    return setting.tokens * shape.vocabulary * (2 * weight + 4 * 4) + hidden


# --- choice -----------------------------------------------------------------------------


def choose(
    shape: ModelShape,
    setting: Setting,
    memory_bytes: int,
    *,
    batch_size: int = -1,
    divisor: float = 1.0,
    may_offload: bool = True,
) -> Setting | None:
    """The least costly way that fits: no offload before offload, then little recomputing.

    Args:
        shape: The model.
        setting: What is given: context, ZeRO stage, processes, precision.
        memory_bytes: Of one GPU, whole; USABLE_SHARE of it is planned with.
        batch_size: Contexts in a micro-batch; -1: as many as fit and make it faster.
        divisor: Divides a batch size that was worked out (`batch_size_divisor`).
        may_offload: Whether there is a GPU to offload from.
    Returns:
        `setting` with batch size, offload and checkpointed layers; None: nothing fits.
    """
    room = int(memory_bytes * USABLE_SHARE)
    most = max(1, SATURATING_TOKENS // setting.context)
    sizes = [batch_size] if batch_size > 0 else range(most, 0, -1)
    for offload in (False, True) if may_offload and setting.zero_stage > 0 else (False,):
        for size in sizes:
            tried = replace(setting, batch_size=size, offload=offload, checkpointed_layers=None)
            if gpu_bytes(shape, tried) > room:
                continue
            if batch_size < 0:
                tried = replace(tried, batch_size=max(1, math.floor(size / divisor)))
            return _with_least_recomputing(shape, tried, room)
    return None


def _with_least_recomputing(shape: ModelShape, setting: Setting, room: int) -> Setting:
    settings = (replace(setting, checkpointed_layers=n) for n in range(shape.layers + 1))
    return next(tried for tried in settings if gpu_bytes(shape, tried) <= room)
