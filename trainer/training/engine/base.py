"""The base model as a run needs it."""

from pathlib import Path
from typing import Any

import torch

from trainer.checkpoints.tensors import SliceReader
from trainer.contract.volume import place_of
from trainer.fetch.weights import weight_files
from trainer.models import load_base
from trainer.models.buffers import make_frozen_parameters_buffers, persistent_buffers
from trainer.training.job import Job


def base_model(job: Job, dtype: torch.dtype, *, filled_later: bool = False) -> Any:
    """The run's base model; see `load_base`. What takes no gradient is a buffer in it."""
    config = job.config
    model = load_base(
        job.path("model"),
        tensorizer=place_of(config.volume, "tensorizer_uri", config.tensorizer_uri),
        num_ids=job.num_ids,
        seed=config.random_seed,
        filled_later=filled_later,
        dtype=dtype,
        trust_remote_code=config.trust_remote_code,
    )
    make_frozen_parameters_buffers(model)
    return model


def weights_for(model: Any, folder: Path) -> SliceReader | None:
    """What reads the model's weights and buffers, or parts of them, from safetensors in `folder`.

    Returns:
        None where the folder's are of other names, shapes or kinds, or not all.
    """
    try:
        paths = weight_files(folder)
    except ValueError:
        return None  # pickled ones, which transformers reads
    parameters = dict(model.named_parameters())
    names = {id(parameter): name for name, parameter in parameters.items()}
    also = {other: names[id(p)] for other, p in model.named_parameters(remove_duplicate=False)}
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    buffers = {name: tuple(b.shape) for name, b in persistent_buffers(model).items()}
    return SliceReader.of_model(paths, shapes, also, buffers)
