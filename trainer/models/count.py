"""Count a model's parameters in the architecture itself: `python -m trainer.models.count`.

Reads a config.json on standard input, builds the model without memory for its weights, and
prints JSON: `parameters`, and `idle_parameters`, those of experts that do not work on a token.
With LoRA's settings under `finetune_lora`, also `trained_parameters`. `shapes` are those of the
tensors by name, where the names of a base model alone have no `prefix`.
"""

import json
import math
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.initialization import no_init_weights
from transformers.utils import logging

from trainer.contract.json_text import parse_json
from trainer.contract.topics import LoraConfig

_PER_TOKEN = (
    "num_experts_per_tok", "num_experts_per_token", "experts_per_token", "moe_k", "moe_topk",
    "moe_top_k",
)  # fmt: skip


def count(config: Any, lora: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Counts of the model of a transformers config; tied weights count once."""
    with torch.device("meta"), no_init_weights():
        model = AutoModelForCausalLM.from_config(config)
        model.tie_weights()  # part of the initialisation that is left out
    idle = 0
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        if "experts" in parts and "shared_experts" not in parts:
            idle += _idle(model, parts, parameter)
    total = sum(parameter.numel() for parameter in model.parameters())
    counts = {
        "parameters": total,
        "idle_parameters": idle,
        "prefix": model.base_model_prefix,
        "shapes": {name: list(tensor.shape) for name, tensor in model.state_dict().items()},
    }
    return counts if lora is None else {**counts, "trained_parameters": _trained(model, lora)}


def _trained(model: Any, lora: Mapping[str, Any]) -> int:
    """Numbers that adapters train, and what is trained whole beside them."""
    from trainer.training.engine.adapters import add_adapters

    with torch.device("meta"):
        add_adapters(model, LoraConfig(**lora), "the model", seed=0)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _idle(model: Any, parts: list[str], parameter: Any) -> int:
    """Numbers of an expert's tensor that a token does not meet, on average."""
    config = model.config.get_text_config()
    values = (getattr(config, name, None) for name in _PER_TOKEN)
    used = next((v for v in values if isinstance(v, int) and v > 0), 0)
    experts = model.get_submodule(".".join(parts[: parts.index("experts") + 1]))
    here = len(experts) if isinstance(experts, torch.nn.ModuleList) else parameter.shape[0]
    return math.floor(parameter.numel() * max(0, here - used) / here) if used and here else 0


def count_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """Counts of the model of a config.json."""
    values = dict(values)
    lora = values.pop("finetune_lora", None)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(values), encoding="utf-8")
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
    return count(config, lora)


if __name__ == "__main__":
    logging.set_verbosity(logging.CRITICAL)
    print(json.dumps(count_of(parse_json(sys.stdin.read()))))
