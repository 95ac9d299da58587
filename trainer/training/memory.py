"""How much memory a training step takes, and the batch size that fits.

Activations are counted, not guessed: one and two layers of the model are run on a few
tokens, and every tensor that autograd keeps for the backward pass is added up. So the
count holds for any architecture; parameters are counted on torch's meta device.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from trainer.config import LoraConfig
from trainer.models.loading import attention_for
from trainer.training.adapters import add_adapters
from trainer.training.loss import CHUNK_ELEMENTS

GIB = 2**30
LARGEST_BATCH = 64  # beyond it a GPU is busy anyway
PROBE_TOKENS = 16  # what is kept grows with them evenly


@dataclass(frozen=True, kw_only=True)
class MemoryNeed:
    """Bytes that one process needs at the peak of a step, by what they are for."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    working: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.working


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What was chosen for `batch_size=-1`, and why."""

    batch_size: int
    gradient_checkpointing: bool
    offload: bool
    need: MemoryNeed
    reason: str


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What of a model decides the memory of a step."""

    parameters: int
    trained: int
    head: int  # numbers in the output layer
    vocabulary: int
    width: int
    layers: int
    layer_bytes: int  # that a layer keeps for each token, fp32
    other_bytes: int  # that is kept beside the layers for each token, fp32


def shape_of(config: Any, lora: LoraConfig | None = None) -> Shape:
    """Count a model from its transformers configuration.

    Args:
        lora: Its adapters are trained, and nothing else.
    """
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        if lora is not None:
            add_adapters(model, lora, "the model", seed=0)
    parameters = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    head = model.get_output_embeddings().weight
    one, two = (_kept_bytes(config, layers) for layers in (1, 2))
    return Shape(
        parameters=parameters,
        trained=trained,
        head=head.numel(),
        vocabulary=head.shape[0],
        width=head.shape[1],
        layers=config.num_hidden_layers,
        layer_bytes=(two - one) // PROBE_TOKENS,
        other_bytes=max(0, 2 * one - two) // PROBE_TOKENS,
    )


def need_of(
    shape: Shape,
    batch_size: int,
    context: int,
    *,
    world: int = 1,
    zero_stage: int = 0,
    element_bytes: int = 4,
    gradient_checkpointing: bool = False,
    offload: bool = False,
) -> MemoryNeed:
    """The memory for a step.

    Args:
        element_bytes: Of weights in use: 4 for fp32, 2 for bf16 and fp16.
        offload: The optimizer's part lies in the host's memory.
    Source: sizes by ZeRO stage: Rajbhandari et al., https://arxiv.org/abs/1910.02054
    """
    weights, gradients = shape.parameters * element_bytes, shape.trained * element_bytes
    masters = 0 if element_bytes == 4 and zero_stage == 0 else 4
    optimizer = 0 if offload else shape.trained * (8 + masters)
    kept = shape.layers * shape.layer_bytes
    if gradient_checkpointing:  # each layer's input, and the inside of the one that is redone
        kept = shape.layers * shape.width * 4 + shape.layer_bytes
    per_byte = batch_size * context * element_bytes // 4  # from a token's fp32 bytes to all
    slope = min(batch_size * context * shape.vocabulary, CHUNK_ELEMENTS)
    # While a chunk is worked on: logits, log-probabilities, and the head's gradient.
    head = slope * (element_bytes + 4) + shape.head * element_bytes
    return MemoryNeed(
        weights=weights // world if zero_stage == 3 else weights,
        gradients=gradients // world if zero_stage >= 2 else gradients,
        optimizer=optimizer // world if zero_stage >= 1 else optimizer,
        activations=(kept + shape.other_bytes) * per_byte,
        # Later, when that is gone: gradients and interim results of one layer.
        working=max(head, shape.layer_bytes * per_byte),
    )


def _kept_bytes(config: Any, layers: int) -> int:
    """Bytes that `layers` layers keep for PROBE_TOKENS tokens, parameters aside."""
    small = copy.deepcopy(config)
    small.num_hidden_layers, small.vocab_size = layers, PROBE_TOKENS
    small.pad_token_id = small.bos_token_id = small.eos_token_id = None
    if getattr(small, "layer_types", None):
        small.layer_types = small.layer_types[:layers]
    attention = attention_for(config)
    base = AutoModelForCausalLM.from_config(small, attn_implementation=attention).base_model
    known = {p.untyped_storage()._cdata for p in base.parameters()}
    kept: list[Tensor] = []  # also keeps them alive: a freed one's address may come again

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            known.add(storage._cdata)
            kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        base.train()(input_ids=torch.arange(PROBE_TOKENS)[None], use_cache=False)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept)


def choose(
    need: Callable[[int, bool, bool], MemoryNeed], capacity_bytes: float, divisor: float = 1.0
) -> Choice:
    """The largest batch that fits, by the least costly means.

    Args:
        need: The need for a batch size, with gradient checkpointing or not, offload or not.
        capacity_bytes: Of the device, for this process.
        divisor: `batch_size_divisor`: the capacity is divided by it.
    Raises:
        ValueError: Not even one context fits.
    """
    capacity = capacity_bytes / divisor
    for checkpointing, offload in ((False, False), (True, False), (True, True)):
        if need(1, checkpointing, offload).total > capacity:
            continue
        size = 1
        while size < LARGEST_BATCH and need(size * 2, checkpointing, offload).total <= capacity:
            size *= 2
        found = need(size, checkpointing, offload)
        means = [
            *(["gradient checkpointing"] if checkpointing else []),
            *(["the optimizer in host memory"] if offload else []),
        ]
        reason = f"batch_size {size} needs {found.total / GIB:.2f} of {capacity / GIB:.2f} GiB" + (
            f", with {' and '.join(means)}" if means else ""
        )
        return Choice(
            batch_size=size,
            gradient_checkpointing=checkpointing,
            offload=offload,
            need=found,
            reason=reason,
        )
    least = need(1, True, True).total / GIB
    raise ValueError(
        f"batch_size can't be worked out: one context needs {least:.1f} GiB "
        f"(got {capacity / GIB:.1f}). Take a shorter context, more GPUs, or a larger one."
    )
