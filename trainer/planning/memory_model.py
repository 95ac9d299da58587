"""How much memory training takes, part by part: pure arithmetic.

Used on both sides of the house: training chooses by it (trainer/planning/memory_choice.py), and
`finetune plan` says beforehand what a run will need. So it imports the standard library
alone and stands in trainer, where flows may read it.

The formulas follow DeepSpeed 0.19 and this project's engine: bf16 or fp16 weights
with an fp32 copy and two fp32 moments for Adam; the loss in chunks; fused attention.
They are held to the measured peak of real steps on the CPU (tests/training/test_memory.py)
and to the published memory of the reference's way, which `REFERENCE` describes.

Source: ZeRO (arXiv 1910.02054) for the partitions; Korthikanti et al. (arXiv
2205.05198) for activations, with the tensors that transformers 5.23 really keeps.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from trainer.planning.model_shape import ModelShape

GIB = 2**30
Precision = Literal["fp32", "bf16", "fp16"]
WEIGHT_BYTES: Mapping[str, int] = {"fp32": 4, "bf16": 2, "fp16": 2}

ADAM_BYTES = 12  # a parameter: fp32 copy and two fp32 moments
GRADIENT_BYTES_ON_HOST = 4  # fp32, where DeepSpeed's CPU Adam reads it
REDUCE_BUCKET = 500_000_000  # numbers; DeepSpeed's default, allocated whole at stages 2 and 3
MAX_LIVE_PARAMETERS = 1_000_000_000  # gathered at a time at stage 3; DeepSpeed's default
LOSS_CHUNK = 2**24  # logits at a time, see trainer/training/engine/loss.py
CONTEXT_BYTES = int(1.2 * GIB)  # CUDA context, cuBLAS and NCCL workspaces
PROCESS_BYTES = 4 * GIB  # host memory of Python, torch and CUDA's libraries
# Likewise without CUDA: each process' own pages after its imports, with DeepSpeed, transformers
# and a process group, and what all processes of a node share of their libraries. Measured with
# tests/training/host_peaks.py: torch 2.13's build for CPUs.
CPU_PROCESS_BYTES = int(0.38 * GIB)
LIBRARY_BYTES = int(0.10 * GIB)
FOUR_BITS_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # codes, their scales in 8 bits, and those scales'
FRAGMENTATION = 0.25  # of what comes and goes in a step, kept by torch's allocator


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a model is trained, as far as memory and time depend on it."""

    context: int
    batch_size: int = 1
    """Contexts in a micro-batch of one process."""
    texts: int = 1
    """Of each context: 2 where it is a pair of answers, each as long as a context."""
    zero_stage: int = 3
    processes: int = 1
    """Training processes in all: one for each GPU."""
    processes_per_node: int = 1
    precision: Precision = "bf16"
    offload: bool = False
    """Whether optimizer and gradients live in host memory."""
    checkpointed_layers: int | None = None
    """Layers that are computed again in the backward pass, the first ones; None: all."""
    trained_parameters: int | None = None
    """Of LoRA's adapters, which come on top of the model's; None: all of the model's."""
    adam_bits: int = 32
    """Of each of Adam's moments; those of 8 bits are never offloaded."""
    trains_head: bool = True
    """Whether the output layer gets a gradient: not with adapters, unless it is trained whole."""
    dora: bool = False
    """Whether adapters are DoRA's, which need each whole weight and more of the activations."""
    base_bits: int = 16
    """4: the frozen linear layers are in 4 bits, in each process; 16: in `precision`."""
    fused_attention: bool = True
    chunked_loss: bool = True
    on_gpu: bool = True
    """False: processes on a CPU, whose "GPU memory" is the host's."""

    @property
    def tokens(self) -> int:
        """Tokens in a micro-batch."""
        return self.batch_size * self.context * self.texts

    def recomputed(self, shape: ModelShape) -> int:
        return shape.layers if self.checkpointed_layers is None else self.checkpointed_layers

    @property
    def stage(self) -> int:
        """The ZeRO stage that is taken for `zero_stage`."""
        return effective_stage(self.zero_stage, self.processes, self.precision, self.offload)

    def share(self, from_stage: int) -> int:
        """Over how many processes something is spread that ZeRO spreads from a stage on."""
        return self.processes if self.stage >= from_stage else 1

    def trained(self, shape: ModelShape) -> int:
        return shape.parameters if self.trained_parameters is None else self.trained_parameters


BESIDE_TENSORS = ("allocator", "CUDA")
"""Parts of a GPU's memory that torch does not count as allocated."""

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
        "weights": _weight_bytes(shape, setting),
        "gathered weights": _gathered(shape, setting) * weight,
        "gradients": _gpu_gradients(shape, setting) * weight,
        "optimizer": 0 if setting.offload else _adam(shape, setting),
        "activations kept": _kept(shape, setting),
        # One after the other, while all activations are there.
        "loss or layer at work": max(loss_bytes(shape, setting), _at_work(shape, setting)),
    }
    passing = parts["activations kept"] + parts["loss or layer at work"]
    if setting.on_gpu:
        parts["allocator"] = int(FRAGMENTATION * passing)
        parts["CUDA"] = CONTEXT_BYTES
    return parts


def host_parts(shape: ModelShape, setting: Setting) -> dict[str, int]:
    """Bytes of host memory on each node at the peak, by what they hold.

    Batches read ahead are below a MiB. Page cache does not count: files of tokens, weights and
    checkpoints that the system keeps while nobody needs the room.
    """
    here = setting.processes_per_node
    parts = {"processes": _process_bytes(setting)}
    if setting.offload:
        held = setting.trained(shape) * here // setting.share(1)
        parts["optimizer"] = ADAM_BYTES * held
        parts["gradients"] = GRADIENT_BYTES_ON_HOST * held
        # DeepSpeed keeps the gradients as they come from the GPU too, in pinned memory.
        parts["pinned gradients"] = WEIGHT_BYTES[setting.precision] * held
    if _in_four_bits(shape, setting):  # each process reads all of it, and quantizes it
        parts["base before 4 bits"] = shape.parameters * WEIGHT_BYTES[setting.precision] * here
    if copied := checkpoint_copy_bytes(shape, setting) * here:
        parts["checkpoint copy"] = copied
    if not setting.on_gpu:
        for name, size in gpu_parts(shape, setting).items():
            parts[name] = parts.get(name, 0) + size * here
    # When training is over the model is put together in fp32, trainer/training/save/final.py.
    in_training = sum(parts.values()) - parts["processes"]
    if (beyond := 4 * shape.parameters - in_training) > 0:
        parts["final model"] = beyond
    return parts


def _process_bytes(setting: Setting) -> int:
    """What a node's processes hold before there is a model."""
    if setting.on_gpu:
        return PROCESS_BYTES * setting.processes_per_node
    return CPU_PROCESS_BYTES * setting.processes_per_node + LIBRARY_BYTES


def checkpoint_copy_bytes(shape: ModelShape, setting: Setting) -> int:
    """Host memory of each process from which a checkpoint is written while training continues.

    In fp32, whatever the precision; all processes together save each number once. None where
    the numbers are in host memory themselves: they are written from there.
    """
    if setting.offload:
        return 0
    return ADAM_BYTES * setting.trained(shape) // setting.processes


def gpu_bytes(shape: ModelShape, setting: Setting) -> int:
    """Bytes on each GPU at the peak of a step."""
    return sum(gpu_parts(shape, setting).values())


def process_bytes(shape: ModelShape, setting: Setting) -> int:
    """What has to fit into a GPU; without one, into a process' part of the host's memory."""
    if setting.on_gpu:
        return gpu_bytes(shape, setting)
    return host_bytes(shape, setting) // setting.processes_per_node


def host_bytes(shape: ModelShape, setting: Setting) -> int:
    """Bytes of host memory on each node."""
    return sum(host_parts(shape, setting).values())


def checkpoint_bytes(shape: ModelShape, trained_parameters: int | None = None) -> int:
    """Size of a checkpoint: fp32 weights and both moments, whatever the precision."""
    return ADAM_BYTES * (shape.parameters if trained_parameters is None else trained_parameters)


def model_bytes(shape: ModelShape) -> int:
    """Size of the base model's weights, and of the finished model's, which are stored alike."""
    return shape.stored_bytes * shape.parameters


# --- parts ------------------------------------------------------------------------------


def effective_stage(asked: int, processes: int, precision: Precision, offload: bool) -> int:
    """The ZeRO stage that does what was asked at the least cost.

    One process has nobody to share with: stage 3 then takes a third longer than stage 0
    (benchmarks/training.py) and holds the same. In 16 bits stage 1 is the least that keeps
    fp32 weights beside those in use.
    """
    least = 0 if precision == "fp32" else 1
    return least if processes == 1 and not offload else max(asked, least)


def _weights(shape: ModelShape, setting: Setting) -> int:
    return shape.parameters + (setting.trained_parameters or 0)


def _in_four_bits(shape: ModelShape, setting: Setting) -> int:
    """Numbers in 4 bits: the matrices of all layers; of a mixture, whose experts are not, none."""
    if setting.base_bits != 4 or shape.expert_parameters:
        return 0
    return shape.layers * shape.layer_parameters


def _weight_bytes(shape: ModelShape, setting: Setting) -> int:
    packed = _in_four_bits(shape, setting)
    others = (_weights(shape, setting) - packed) * WEIGHT_BYTES[setting.precision]
    return others // setting.share(3) + int(packed * FOUR_BITS_BYTES)


def _adam(shape: ModelShape, setting: Setting) -> int:
    # In fp32, and nothing spread, the weights themselves are what Adam updates.
    updates_weights = setting.precision == "fp32" and setting.stage == 0
    each = (0 if updates_weights else 4) + 2 * setting.adam_bits // 8
    return setting.trained(shape) * each // setting.share(1)


def _gathered(shape: ModelShape, setting: Setting) -> int:
    """Numbers that stage 3 gathers beside its own share; one process has all of them."""
    if setting.stage < 3 or setting.processes == 1:
        return 0
    return min(MAX_LIVE_PARAMETERS, shape.parameters)


def _gpu_gradients(shape: ModelShape, setting: Setting) -> int:
    """Numbers: the accumulated gradients, the bucket they pass through, and the newest."""
    trained, stage = setting.trained(shape), setting.stage
    if stage == 0:
        return trained
    passing = 2 * min(shape.largest_tensor, trained)
    passing += _buckets(trained, setting)
    if setting.offload:
        return passing
    return passing + trained // setting.share(2)


def _buckets(trained: int, setting: Setting) -> int:
    """Numbers where gradients are collected to be reduced.

    Without a GPU what no gradient fills is never touched. There gloo works on a copy of its own,
    and stage 3 has made one in the partitions' order (reduce_scatter_coalesced).
    """
    if setting.on_gpu:
        return REDUCE_BUCKET if setting.stage >= 2 else 0
    copies = 1 if setting.processes == 1 else 3 if setting.stage == 3 else 2
    return min(REDUCE_BUCKET, trained) * copies


def _kept(shape: ModelShape, setting: Setting) -> int:
    """Activations kept from the forward pass for the backward pass."""
    recomputed = setting.recomputed(shape)
    state = setting.tokens * shape.width * WEIGHT_BYTES[setting.precision]
    layers = recomputed * state + (shape.layers - recomputed) * _layer(shape, setting)
    return layers + 2 * state  # the last layer's output, and that normed


def _at_work(shape: ModelShape, setting: Setting) -> int:
    """The widest gradients of a layer; where all are computed again, its activations with them."""
    gradients = 2 * setting.tokens * shape.inner * WEIGHT_BYTES[setting.precision]
    if _in_four_bits(shape, setting):  # a weight as the codes stand for it
        gradients += shape.width * shape.inner * WEIGHT_BYTES[setting.precision]
    if setting.dora:  # a weight with its adapter worked in, the difference, and their norm's square
        gradients += 3 * shape.width * shape.inner * 4
    is_all = setting.recomputed(shape) == shape.layers
    return gradients + (_layer(shape, setting) if is_all else 0)


def _layer(shape: ModelShape, setting: Setting) -> int:
    """Activations of one layer that its backward pass needs."""
    queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    numbers = shape.kept_states * shape.width + queries + 2 * keys + shape.kept_inner * shape.inner
    if setting.dora:  # the outputs of each matrix and of its adapter, which DoRA scales
        numbers += 2 * (queries + 2 * keys + shape.width + (3 if shape.gated else 2) * shape.inner)
    size = setting.tokens * numbers * WEIGHT_BYTES[setting.precision]
    if not setting.fused_attention:
        # Scores and softmax in fp32, scaled scores in fp32, probabilities: all T x T.
        each = 12 + WEIGHT_BYTES[setting.precision]
        size += setting.tokens * setting.context * shape.heads * each
    return size


def loss_bytes(shape: ModelShape, setting: Setting) -> int:
    """What comes and goes while the loss and its gradient are worked out."""
    weight = WEIGHT_BYTES[setting.precision]
    hidden = setting.tokens * shape.width * weight
    if setting.chunked_loss:
        chunk = min(LOSS_CHUNK, setting.tokens * shape.vocabulary)
        # Logits, fp32 log-probabilities, and their slope in 16 bits.
        logits = chunk * (weight + 4 + (weight if weight < 4 else 0))
        # The gradient of the output layer is summed in fp32.
        head = shape.embedding_parameters if setting.trains_head else 0
        return logits + hidden + head * (4 + (weight if weight < 4 else 0))
    # Logits and their gradient; in fp32: logits, shifted copy, log-probabilities, gradient.
    return setting.tokens * shape.vocabulary * (2 * weight + 4 * 4) + hidden
