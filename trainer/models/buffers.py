"""Numbers of a model that no optimizer changes and that are part of it all the same.

transformers' `state_dict` holds persistent buffers beside the parameters: corrections of a
router (`e_score_correction_bias` of DeepSeek-V3), scales of layers (`layer_scalar` of Gemma 4).
A trained base model brings them, and code of a model may change them while it trains. Some
models declare such numbers as parameters without gradients: they are treated alike.
"""

from typing import Any

from torch import Tensor


def persistent_buffers(model: Any) -> dict[str, Tensor]:
    """The buffers that belong to the model's `state_dict`, by the name that they have there."""
    found: dict[str, Tensor] = {}
    for prefix, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                found[f"{prefix}.{name}" if prefix else name] = buffer
    return found


def make_frozen_parameters_buffers(model: Any) -> None:
    """Turn parameters that take no gradient into persistent buffers of the same name.

    They then go where buffers go: into checkpoints, to every process, never to the optimizer.
    """
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if not parameter.requires_grad:
                del module._parameters[name]
                module.register_buffer(name, parameter.detach())
