"""Whether a model's weights have the shapes that its config.json gives them.

The shapes come from the architecture itself, built without memory, so every dimension of every
architecture is compared: heads, experts, the inner width. A file may hold a tensor turned, or
several in one that the architecture has apart: those have other names, or as many numbers.
"""

import math
from pathlib import Path
from typing import Any

from trainer.fetch.model_folder import ModelFacts, read_config
from trainer.parameter_counts import tensor_shapes


def weight_problems(model: ModelFacts, volume: Path, lora: Any = None) -> list[str]:
    """A sentence where a tensor of the model has another number of weights than its config says.

    Args:
        volume: Where counts of weights are kept.
        lora: The request's topic: the counts are kept with it.
    """
    if not model.tensors:
        return []
    expected = tensor_shapes(read_config(model.folder), volume, lora=lora)
    wrong = [
        (name, tensor.shape, expected[name])
        for name, tensor in model.tensors.items()
        if name in expected and math.prod(tensor.shape) != math.prod(expected[name])
    ]
    if not wrong:
        return []
    name, found, said = wrong[0]
    more = f", and {len(wrong) - 1:,} more" if len(wrong) > 1 else ""
    return [
        f"model {model.folder.name} has weights of another shape than its config.json says (got "
        f"{_shown(found)} for {name}, which the config makes {_shown(said)}{more}). "
        "Bring the config.json that belongs to the weights."
    ]


def _shown(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "one number"
