"""A DeepSpeed engine for one process of a run, and what is fed to it and asked of it.

DeepSpeed partitions, reduces and steps; the loop owns everything that decides what is
computed: batches, the weight of each token, the learning rate. So DeepSpeed's own
accumulation, scheduler, data loader and checkpoints are not used.
"""

import functools
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from trainer.models.buffers import persistent_buffers
from trainer.training.engine import kernels
from trainer.training.engine.adam import Clipping, make_adam
from trainer.training.engine.fetching import fetch
from trainer.training.engine.loss import CausalLoss, trained_places
from trainer.training.engine.options import EngineOptions, deepspeed_config
from trainer.training.engine.preference import PreferenceLoss, without_dropout
from trainer.training.engine.start_up import host_group, import_deepspeed, join_processes

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What became of an optimizer step."""

    applied: bool
    grad_norm: float
    loss: float = 0.0
    """The sum of the losses that were handed to `step`."""


# Of a step whose contexts are all left out: no weight and no moment changes, which is no failure.
WITHOUT_UPDATE = StepReport(applied=True, grad_norm=math.nan, loss=math.nan)


class Engine:
    """One process's part of the model, its optimizer and the processes' common work."""

    def __init__(self, model: Any, options: EngineOptions) -> None:
        self.options = options
        self.model = model
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.device.type == "cuda":
            kernels.keep_order_of_sums(options.deterministic)
        self.names = {id(p): name for name, p in model.named_parameters()}
        self._has_buffers = bool(persistent_buffers(model))
        _compute_again(model, options.checkpointed_layers)
        if options.liger:
            kernels.take_liger(model)
        if options.beta:
            without_dropout(model)
        self._module = PreferenceLoss(model, options.beta) if options.beta else CausalLoss(model)
        self._engine, self.adam = self._initialize(self._module)
        self._losses: Sequence[Tensor] = ()
        self._asks_once = False
        self._sum_of_losses = 0.0
        if options.zero_stage in (1, 2) and not options.offload:
            self._ask_once()
        self._full_graphs = options.compile
        if options.compile:
            kernels.compile_layers(layers_of(model), fullgraph=True)

    @functools.cached_property
    def attention(self) -> str:
        """What attention is given to, by a whole context: see kernels.attention_backend."""
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return kernels.attention_backend(
            self.model,
            self.options.batch_size,
            limit or 2048,
            self.device,
            masked=self.options.packed,
        )

    @property
    def zero(self) -> Any:
        """DeepSpeed's optimizer, which holds the partitions; Adam itself at stage 0."""
        return self._engine.optimizer

    def loss(
        self,
        ids: Tensor,
        lengths: Tensor,
        trained: Tensor | None = None,
        positions: Tensor | None = None,
        reference: Tensor | None = None,
    ) -> Tensor:
        """The summed loss of a micro-batch in host memory: see CausalLoss.forward.

        Of pairs: see PreferenceLoss.forward.
        """
        given = self._given(ids, lengths, trained, positions, reference)
        if not self._full_graphs:
            return self._engine(*given)
        found = kernels.full_graphs_or_less(lambda: self._engine(*given), layers_of(self.model))
        self._full_graphs = False  # they are compiled, one way or the other
        return found

    def log_probs(self, ids: Tensor, lengths: Tensor, trained: Tensor | None) -> Tensor:
        """Of pairs, the log-probability of each answer, (P, 2): see PreferenceLoss.forward."""
        return self._engine(*self._given(ids, lengths, trained))

    def _given(
        self,
        ids: Tensor,
        lengths: Tensor,
        trained: Tensor | None,
        positions: Tensor | None = None,
        reference: Tensor | None = None,
    ) -> tuple[Tensor | None, ...]:
        """What the module is given: on the device, but for the lengths."""
        places = self._bring(trained_places(lengths, ids.shape[1], trained))
        where = None if positions is None else self._bring(positions)
        first = self._bring(ids), lengths, None, where
        if not self.options.beta:
            return *first, places
        return *first, None if reference is None else self._bring(reference), places

    @property
    def rewards(self) -> Tensor | None:
        """Of the last loss of pairs: the sum of margins, and how many are above 0; (2,)."""
        return self._module.rewards if isinstance(self._module, PreferenceLoss) else None

    def _bring(self, tensor: Tensor) -> Tensor:
        """The tensor on the device; from pinned memory the host does not wait for the copy."""
        if self.device.type == "cuda" and not tensor.is_pinned():
            tensor = tensor.pin_memory()
        return tensor.to(self.device, non_blocking=True)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss`, already divided by the tokens of the whole step."""
        # DeepSpeed averages over processes; the step's loss is a sum over them.
        self._engine.backward(loss * self.options.world)

    def step(self, learning_rate: float, losses: Sequence[Tensor] = ()) -> StepReport:
        """Clip and apply the gradients, unless they are not finite; clear them.

        The host waits for the device once, for all that it wants to know of the step. DeepSpeed
        itself asks for the norm and the overflow at stages 1 to 3.

        Args:
            losses: Of the step's micro-batches.
        """
        for group in self.zero.param_groups:
            group["lr"] = learning_rate
        self._losses = losses
        self._engine.step()
        self.share_buffers()
        if isinstance(self.adam, Clipping):
            norm = self._fetch_with_losses(self.adam.grad_norm)
            return StepReport(applied=math.isfinite(norm), grad_norm=norm, loss=self._sum_of_losses)
        norm = self._engine.get_global_grad_norm()
        if not self._asks_once:
            norm = self._fetch_with_losses(norm)
        applied = not self.zero.overflow
        return StepReport(applied=applied, grad_norm=float(norm), loss=self._sum_of_losses)

    def _fetch_with_losses(self, norm: Any) -> float:
        """The norm in host memory; the sum of the step's losses comes with it."""
        losses = self._losses
        loss = torch.stack([*losses]).double().sum() if losses else 0.0
        self._sum_of_losses, found = fetch(loss, norm)
        return found

    def _ask_once(self) -> None:
        """Have DeepSpeed's stages 1 and 2 decide by a norm that is in host memory already.

        They ask the device for an overflow, and twice whether the norm is finite. One that is not
        says that there was an overflow: they treat it as such.
        """
        zero, norm_of = self.zero, self.zero.scaled_global_norm

        def norm_on_host(*given: Any, **options: Any) -> Tensor:
            norm = norm_of(*given, **options)
            return torch.tensor(self._fetch_with_losses(norm), dtype=norm.dtype)

        zero.check_overflow = lambda *given, **options: None
        zero.scaled_global_norm = norm_on_host
        self._asks_once = True

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

    @property
    def buffers(self) -> dict[str, Tensor]:
        """The model's persistent buffers, by name: the same numbers in every process."""
        return persistent_buffers(self.model) if self._has_buffers else {}

    def share_buffers(self) -> None:
        """Give every process the first one's buffers, which the model's code may have changed."""
        if self.options.world == 1:
            return
        for buffer in self.buffers.values():
            dist.broadcast(buffer.data, src=0)

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

    def _initialize(self, module: torch.nn.Module) -> tuple[Any, torch.optim.Optimizer]:
        deepspeed = import_deepspeed()
        join_processes(self.options.rank, self.options.world)
        if self.options.zero_stage == 3:
            self._split(module, deepspeed)
        adam = make_adam(
            self.model,
            zero_stage=self.options.zero_stage,
            offload=self.options.offload,
            bits=self.options.adam_bits,
            options=self.options.adam,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            engine, *_ = deepspeed.initialize(
                model=module, optimizer=adam, config=deepspeed_config(self.options)
            )
        if self.options.world == 1 and self.options.zero_stage == 0:
            # It would copy all gradients into one buffer and back to add up nothing: 6 % of a step.
            engine.enable_backward_allreduce = False
        engine.train()
        return engine, adam

    def _split(self, module: torch.nn.Module, deepspeed: Any) -> None:
        """Leave each process its part of every parameter, one parameter after another.

        DeepSpeed's own start moves the whole model to each process' device first, where it has
        to fit, and fills it there.
        """
        dtype = DTYPES[self.options.precision]
        for parameter in module.parameters():
            parameter.data = parameter.data.to(dtype)  # adapters are made in fp32
        for buffer in module.buffers():
            buffer.data = buffer.data.to(self.device)
        config = deepspeed_config(self.options)
        deepspeed.zero.Init(module=module, config_dict_or_path=config, dtype=dtype)


def _compute_again(model: Any, layers: int | None) -> None:
    """Have the first layers keep their input alone, and compute the rest again when needed."""
    if layers == 0:
        return
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for layer in layers_of(model)[layers:] if layers is not None else ():
        layer.gradient_checkpointing = False


def layers_of(model: Any) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
