"""A DeepSpeed engine for one process of a run, and what is fed to it and asked of it.

DeepSpeed partitions, reduces and steps; the loop owns everything that decides what is
computed: batches, the weight of each token, the learning rate. So DeepSpeed's own
accumulation, scheduler, data loader and checkpoints are not used.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from trainer.errors import RequestError
from trainer.memory_model import Precision
from trainer.training.adam import GRADIENT_CLIP, Clipping, make_adam
from trainer.training.loss import CausalLoss
from trainer.training.start_up import host_group, import_deepspeed, join_processes

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How a model is spread over processes and memory."""

    rank: int
    world: int
    batch_size: int
    zero_stage: int
    precision: Precision
    offload: bool = False
    checkpointed_layers: int | None = 0
    """Layers that are computed again in the backward pass, the first ones; None: all."""
    compile: bool = False
    """Have torch.compile write the layers' code: takes micro-batches of one shape alone."""
    liger: bool = False
    """Take Liger's kernels."""
    adam_bits: int = 32
    """Of Adam's moments: 32, or 8 in blocks."""


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What became of an optimizer step."""

    applied: bool
    grad_norm: float


class Engine:
    """One process's part of the model, its optimizer and the processes' common work."""

    def __init__(self, model: Any, options: EngineOptions) -> None:
        self.options = options
        self.model = model
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.names = {id(p): name for name, p in model.named_parameters()}
        _compute_again(model, options.checkpointed_layers)
        if options.liger:
            _take_liger_kernels(model)
        self._engine, self.adam = self._initialize(CausalLoss(model))
        if options.compile:
            # Each shape has code of its own, whose sums may be in another order: a run that
            # goes on would meet the shapes in another order if there were several.
            for layer in _layers(model):
                layer.compile(dynamic=False)

    @property
    def zero(self) -> Any:
        """DeepSpeed's optimizer, which holds the partitions; Adam itself at stage 0."""
        return self._engine.optimizer

    def loss(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """The summed loss of a micro-batch: see CausalLoss.forward."""
        return self._engine(ids.to(self.device), lengths.to(self.device))

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss`, already divided by the tokens of the whole step."""
        # DeepSpeed averages over processes; the step's loss is a sum over them.
        self._engine.backward(loss * self.options.world)

    def step(self, learning_rate: float) -> StepReport:
        """Clip and apply the gradients, unless they are not finite; clear them."""
        for group in self.zero.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        if isinstance(self.adam, Clipping):
            norm, applied = self.adam.grad_norm, self.adam.applied
        else:
            norm, applied = float(self._engine.get_global_grad_norm()), not self.zero.overflow
        return StepReport(applied=applied, grad_norm=norm)

    @property
    def loss_scale_was_lowered(self) -> bool:
        """Whether fp16's loss scale, lowered after each step it was too high for, can go lower."""
        return self.options.precision == "fp16" and self.zero.loss_scaler.cur_scale > 1

    def sum_over_processes(self, *values: float) -> list[float]:
        """Add up each value over the processes."""
        if self.options.world == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=host_group())
        return total.tolist()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode without gradients, nothing compiled; training mode afterwards."""
        self._engine.eval()
        try:
            with torch.no_grad(), torch.compiler.set_stance("force_eager"):
                yield
        finally:
            self._engine.train()

    def close(self) -> None:
        self._engine.destroy()
        if dist.is_initialized():
            dist.destroy_process_group()

    def _initialize(self, module: CausalLoss) -> tuple[Any, torch.optim.Optimizer]:
        deepspeed = import_deepspeed()
        join_processes(self.options.rank, self.options.world)
        if self.options.zero_stage == 3:
            self._split(module, deepspeed)
        adam = make_adam(
            [p for p in module.parameters() if p.requires_grad],
            zero_stage=self.options.zero_stage,
            offload=self.options.offload,
            bits=self.options.adam_bits,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            engine, *_ = deepspeed.initialize(
                model=module, optimizer=adam, config=_deepspeed_config(self.options)
            )
        if self.options.world == 1 and self.options.zero_stage == 0:
            # It would copy all gradients into one buffer and back to add up nothing: 6 % of a step.
            engine.enable_backward_allreduce = False
        engine.train()
        return engine, adam

    def _split(self, module: CausalLoss, deepspeed: Any) -> None:
        """Leave each process its part of every parameter, one parameter after another.

        DeepSpeed's own start moves the whole model to each process' device first, where it has
        to fit, and fills it there.
        """
        dtype = DTYPES[self.options.precision]
        for parameter in module.parameters():
            parameter.data = parameter.data.to(dtype)  # adapters are made in fp32
        for buffer in module.buffers():
            buffer.data = buffer.data.to(self.device)
        config = _deepspeed_config(self.options)
        deepspeed.zero.Init(module=module, config_dict_or_path=config, dtype=dtype)


def _compute_again(model: Any, layers: int | None) -> None:
    """Have the first layers keep their input alone, and compute the rest again when needed."""
    if layers == 0:
        return
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for layer in _layers(model)[layers:] if layers is not None else ():
        layer.gradient_checkpointing = False


def _layers(model: Any) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]


def _take_liger_kernels(model: Any) -> None:
    """Norms, rotations and activations of Liger's; the loss in chunks stays ours."""
    from liger_kernel.transformers import _apply_liger_kernel_to_instance
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    kind = model.config.model_type
    if kind not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise RequestError(
            f"kernels.liger has no kernels for this model (got model_type {kind!r}). "
            "Leave it out, or try kernels.compile."
        )
    _apply_liger_kernel_to_instance(model, cross_entropy=False, fused_linear_cross_entropy=False)


def _deepspeed_config(options: EngineOptions) -> dict[str, Any]:
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": options.batch_size,
        "gradient_accumulation_steps": 1,
        # `Engine.step` says when a step is complete: the last of an epoch has fewer batches.
        "managed_gradient_accumulation": False,
        "gradient_clipping": 0.0 if options.zero_stage == 0 else GRADIENT_CLIP,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
        "bf16": {"enabled": options.precision == "bf16", "check_grad_overflow": True},
        "fp16": {"enabled": options.precision == "fp16"},
        "zero_optimization": {"stage": options.zero_stage, "overlap_comm": False},
    }
    if options.offload:
        config["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    return config
