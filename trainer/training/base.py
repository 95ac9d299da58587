"""The base model as a run needs it."""

from typing import Any

import torch

from trainer.config import place_of
from trainer.models import load_base
from trainer.training.job import Job


def base_model(job: Job, dtype: torch.dtype, *, filled_later: bool = False) -> Any:
    """The run's base model; see `load_base`."""
    config = job.config
    return load_base(
        job.path("model"),
        tensorizer=place_of(config.volume, "tensorizer_uri", config.tensorizer_uri),
        num_ids=job.num_ids,
        seed=config.random_seed,
        filled_later=filled_later,
        dtype=dtype,
        trust_remote_code=config.trust_remote_code,
    )
