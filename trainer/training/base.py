"""The base model as a run needs it."""

from pathlib import Path
from typing import Any

import torch

from trainer.checkpoints.tensors import SliceReader
from trainer.models import load_base
from trainer.training.job import Job
from trainer.volume_paths import place_of


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


def weights_for(model: Any, folder: Path) -> SliceReader | None:
    """What reads the model's weights, or parts of them, from safetensors in `folder`.

    Returns:
        None where the folder's are of other names, shapes or kinds, or not all.
    """
    parameters = dict(model.named_parameters())
    names = {id(parameter): name for name, parameter in parameters.items()}
    also = {other: names[id(p)] for other, p in model.named_parameters(remove_duplicate=False)}
    if not also.keys() >= model.state_dict().keys():
        return None  # buffers that are saved, too
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    return SliceReader.of_model(folder, shapes, also)
