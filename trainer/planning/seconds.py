"""How long a step takes, part by part: operations and bytes over what a machine reaches.

A roofline: matrix products at a share of the GPU's peak, everything else by the bytes
it moves. Nothing is taken to overlap, as the engine overlaps nothing.

Each GPU's `reached_share` (gpus.yaml) and `CORE_GBS` are set so that published runs come out,
the reference's among them (GPT-J 6B on an A40: 66 s a step): tests/plan/test_seconds.py. What
earlier runs measured corrects them.
"""

from trainer.planning.catalogue import Gpu
from trainer.planning.memory_model import (
    ADAM_BYTES,
    WEIGHT_BYTES,
    Setting,
    checkpoint_bytes,
    model_bytes,
)
from trainer.planning.model_shape import ModelShape

CORE_GBS = 3.5  # GB/s of host memory that a core moves in DeepSpeed's CPU Adam, eight at once
CPU_ADAM_GBS = 20.0  # likewise in torch's fused Adam, two at once
CPU_TFLOPS_PER_CORE = 0.075  # fp32: the demo's 11,400 tokens/s on two idle cores, README.md
ADAM_TRAFFIC = 30  # bytes a parameter: reads four fp32 numbers, writes three and a half
HOST_TRAFFIC = ADAM_TRAFFIC + 14  # and casts the gradients, sums their squares, scales them
NODE_GBS = 10.0  # that a node sends to the others: 100 Gbit/s Ethernet; InfiniBand is faster
READ_GBS = 1.0  # from and to the volume, of models and checkpoints
START_SECONDS = 120.0  # image, imports, process group; until the model is read
CPU_START_SECONDS = 5.0  # imports and process group, of an idle core


def operations_per_token(shape: ModelShape, setting: Setting) -> float:
    """Floating-point operations of training on a token: forward, backward, recomputing.

    Source: 2 a weight forward and 4 backward (Kaplan et al., arXiv 2001.08361), 2 where the
    weight is frozen, as LoRA leaves it, and the two products of attention, of which a fused
    kernel skips the masked half.
    """
    seen = setting.context / (2 if setting.fused_attention else 1)
    layer = 2 * shape.layer_parameters + 4 * seen * shape.heads * shape.head_size
    head = 2 * shape.embedding_parameters
    attention = shape.layers * (layer - 2 * shape.layer_parameters)
    weights = 2 * shape.layers * shape.layer_parameters + head
    passes = 3 if setting.trained_parameters is None else 2
    return passes * weights + 3 * attention + setting.recomputed(shape) * layer


def forward_operations_per_token(shape: ModelShape, setting: Setting) -> float:
    """Of an evaluation: a third of training without recomputing."""
    layer = 2 * shape.layer_parameters + 2 * setting.context * shape.heads * shape.head_size
    return shape.layers * layer + 2 * shape.embedding_parameters


def rate(gpu: Gpu | None, cores: int, processes: int) -> float:
    """Operations a second that one process reaches; `gpu` None: its part of the cores."""
    if gpu is None:
        return CPU_TFLOPS_PER_CORE * 1e12 * cores / processes
    return gpu.peak_tflops * 1e12 * gpu.reached_share


def step_seconds(
    shape: ModelShape, setting: Setting, gpu: Gpu | None, *, gradients: int, cores: int
) -> dict[str, float]:
    """Seconds of an optimizer step, by what they are spent on.

    Args:
        shape: The model.
        setting: How it is trained.
        gpu: On what; None: on the CPU.
        gradients: Micro-batches a step.
        cores: Of each node.
    """
    operations = operations_per_token(shape, setting) * setting.tokens * gradients
    parts = {"compute": operations / rate(gpu, cores, setting.processes_per_node)}
    weights = shape.parameters * WEIGHT_BYTES[setting.precision]
    own = shape.parameters // setting.share(1)
    if setting.offload and gpu is not None:
        # Each micro-batch's gradients go to the host; from the second on their sum comes first.
        trips = (2 * gradients - 1) * weights / setting.share(1)
        parts["gradients to host"] = trips / (gpu.host_gbs * 1e9)
        here = own * setting.processes_per_node
        parts["optimizer"] = here * HOST_TRAFFIC / (cores * CORE_GBS * 1e9)
        parts["weights to GPU"] = weights / setting.share(1) / (gpu.host_gbs * 1e9)
    else:
        bandwidth = gpu.bandwidth_gbs if gpu else cores * CPU_ADAM_GBS / setting.processes_per_node
        parts["optimizer"] = own * ADAM_TRAFFIC / (bandwidth * 1e9)
    if setting.processes > 1:
        speed_gbs = gpu.peer_gbs if gpu else CORE_GBS
        if setting.processes > setting.processes_per_node:
            speed_gbs = min(speed_gbs, NODE_GBS / setting.processes_per_node)
        parts["between processes"] = _exchanged(setting, weights, gradients) / (speed_gbs * 1e9)
    return parts


def _exchanged(setting: Setting, weights: int, gradients: int) -> float:
    """Bytes that a process sends in a step. Source: ZeRO (arXiv 1910.02054), section 7."""
    passed = weights * (setting.processes - 1) / setting.processes
    if setting.zero_stage == 3:
        return 3 * passed * gradients  # gathered forward and backward, gradients scattered
    if setting.zero_stage == 2:
        return passed * gradients + passed  # scattered; updated weights gathered
    return 2 * passed * gradients  # all-reduced


def save_seconds(shape: ModelShape, setting: Setting, gpu: Gpu | None) -> float:
    """How long training stands still for a checkpoint: the copy of its state in memory."""
    gbs = gpu.host_gbs if gpu and not setting.offload else 4 * CORE_GBS
    return ADAM_BYTES * setting.trained(shape) / setting.share(1) / (gbs * 1e9)


def evaluation_seconds(
    shape: ModelShape, setting: Setting, gpu: Gpu | None, *, contexts: int, cores: int
) -> float:
    """How long the loss of held-out contexts takes."""
    tokens = contexts * setting.context * setting.texts
    operations = forward_operations_per_token(shape, setting) * tokens
    per_process = rate(gpu, cores, setting.processes_per_node)
    return operations / (per_process * setting.processes)


def start_seconds(shape: ModelShape, setting: Setting) -> float:
    """Until a step does what it is for: start-up, and reading the model."""
    start = START_SECONDS if setting.on_gpu else CPU_START_SECONDS
    return start + model_bytes(shape) / (READ_GBS * 1e9)


def finish_seconds(shape: ModelShape, setting: Setting) -> float:
    """After the last step: the last checkpoint is written and read back, the final model made."""
    last = 2 * checkpoint_bytes(shape, setting.trained_parameters)
    return (last + 4 * shape.parameters + model_bytes(shape)) / (READ_GBS * 1e9)
