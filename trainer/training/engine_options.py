"""From a run's config to its engine: how it is spread over processes, in which precision."""

from dataclasses import fields

import torch

from trainer.contract.events import say
from trainer.contract.topics import OptimizerConfig
from trainer.planning.memory_model import Precision, effective_stage
from trainer.tokens.store import read_manifest as read_store_manifest
from trainer.training.engine.adam import AdamOptions
from trainer.training.engine.options import EngineOptions
from trainer.training.job import Job


def options_of(job: Job, rank: int, world: int) -> EngineOptions:
    """The engine of one process; what is done otherwise than asked is said by the first."""
    precision = choose_precision(job.config.precision, job.config.force_fp16)
    manifest, _ = read_store_manifest(job.path("tokens"))
    stage = effective_stage(job.zero_stage, world, precision, job.offload)
    if stage < job.zero_stage and rank == 0 and not job.is_trial:
        say(f"zero_stage {job.zero_stage} splits nothing over one process: trained as {stage}")
    return EngineOptions(
        rank=rank,
        world=world,
        batch_size=job.batch_size,
        zero_stage=stage,
        precision=precision,
        offload=job.offload,
        checkpointed_layers=job.checkpointed_layers,
        compile=job.config.kernels.compile,
        liger=job.config.kernels.liger,
        deterministic=job.config.kernels.deterministic,
        adam_bits=job.config.optimizer.adam_bits,
        adam=_adam_options(job.config.optimizer),
        packed=manifest.packed,
        beta=job.config.preference.beta if manifest.of_pairs else 0.0,
    )


def _adam_options(optimizer: OptimizerConfig) -> AdamOptions:
    names = [field.name for field in fields(AdamOptions)]
    return AdamOptions(**{name: getattr(optimizer, name) for name in names})


def choose_precision(asked: Precision | str, force_fp16: bool) -> Precision:
    """fp32 on the CPU; on a GPU bf16 where it has it, else fp16."""
    if force_fp16:
        return "fp16"
    if asked:
        return asked  # type: ignore[return-value]
    if not torch.cuda.is_available():
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
