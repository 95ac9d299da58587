"""A DeepSpeed engine for one process of a run, and what is fed to it and asked of it.

DeepSpeed partitions, reduces and steps; the loop owns everything that decides what is
computed: batches, the weight of each token, the learning rate. So DeepSpeed's own
accumulation, scheduler, data loader and checkpoints are not used.
"""

import fcntl
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from trainer.errors import RequestError
from trainer.training.loss import CausalLoss

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
GRADIENT_CLIP = 1.0  # the largest norm a step is taken with; transformers' Trainer's default
ADAM = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}  # Trainer's, too


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
        self._engine, self._adam = self._initialize(CausalLoss(model))
        if options.compile:
            # Each shape has code of its own, whose sums may be in another order: a run that
            # goes on would meet the shapes in another order if there were several.
            for layer in _layers(model):
                layer.compile(dynamic=False)

    @property
    def zero(self) -> Any:
        """DeepSpeed's optimizer, which holds the partitions; Adam itself at stage 0."""
        return self._engine.optimizer

    @property
    def adam(self) -> torch.optim.Optimizer:
        return self._adam

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
        if isinstance(self._adam, _Clipping):
            norm, applied = self._adam.grad_norm, self._adam.applied
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
        dist.all_reduce(total, group=_small_talk())
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
        trained = [p for p in module.parameters() if p.requires_grad]
        options: dict[str, Any] = {"lr": 0.0, **ADAM}
        if self.options.offload:
            from deepspeed.ops.adam import DeepSpeedCPUAdam  # compiles itself on first use
            from torch.utils.cpp_extension import _get_build_directory

            with compiling_alone(Path(_get_build_directory("cpu_adam", verbose=False))):
                adam: torch.optim.Optimizer = DeepSpeedCPUAdam(trained, **options)
        elif self.options.adam_bits == 8:
            from trainer.training.eight_bits import EightBitAdam

            kind = type("_ClippingAdam8bit", (_Clipping, EightBitAdam), {})
            adam = (kind if self.options.zero_stage == 0 else EightBitAdam)(trained, **options)
        elif self.options.zero_stage == 0:
            adam = _ClippingAdamW(trained, **options, fused=True)
        else:
            adam = torch.optim.AdamW(trained, **options, fused=True)
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


class _Clipping(torch.optim.Optimizer):
    """Adam that clips, and leaves out a step whose gradients are not finite.

    At ZeRO stage 0 DeepSpeed would apply such a step; at the others it finds it itself.
    """

    grad_norm = 0.0
    applied = True

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        parameters = [p for group in self.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, GRADIENT_CLIP)
        self.grad_norm = float(norm)
        self.applied = bool(torch.isfinite(norm))
        if self.applied:
            super().step(closure)


class _ClippingAdamW(_Clipping, torch.optim.AdamW):
    pass


@contextmanager
def compiling_alone(folder: Path) -> Iterator[None]:
    """Be the one who builds the extension of that folder.

    A process that is killed while it builds leaves torch's lock file behind, and every later
    one would wait for it without end. Ours goes with its process.
    """
    with open(folder / "finetune.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "lock").unlink(missing_ok=True)
        yield


def import_deepspeed() -> Any:
    """DeepSpeed on this machine's accelerator, silent unless something is wrong."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # DeepSpeed 0.19.8 calls functions by names that torch 2.13 is about to drop, at every step.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    logging.disable(logging.WARNING)  # it greets while it is imported
    try:
        import deepspeed
    finally:
        logging.disable(logging.NOTSET)
    for name in ("DeepSpeed", "deepspeed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # It would compile an all-reduce for CPU processes with g++, whose processes wait forever
    # for one that died; gloo is there already and notices.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def join_processes(rank: int, world: int) -> None:
    """Make torch's process group of a run: alone, or through the store that the launcher named."""
    # DeepSpeed insists on knowing which of its machine's processes this is.
    os.environ.setdefault("LOCAL_RANK", str(rank))
    if dist.is_initialized():
        return
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if world == 1:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    else:
        dist.init_process_group(
            backend, init_method=os.environ["FINETUNE_RENDEZVOUS"], rank=rank, world_size=world
        )


_cpu_group: list[Any] = []


def _small_talk() -> Any:
    """A group for numbers in host memory, whatever the engine's processes speak otherwise."""
    if not _cpu_group:
        _cpu_group.append(
            dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
        )
    return _cpu_group[0]


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
