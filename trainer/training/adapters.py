"""LoRA: train low-rank adapters beside frozen weights, by the peft library.

The adapters are put into transformers' own model, so everything else stays as it is:
checkpoints hold what is trained, which is the adapters alone.
"""

from pathlib import Path
from typing import Any

import torch

from trainer.errors import RequestError
from trainer.topics import LoraConfig


def add_adapters(model: Any, lora: LoraConfig, base_model: str, seed: int) -> Any:
    """Put adapters into `model` and freeze the rest; their first numbers come from `seed`.

    Returns:
        A peft model that shares the modules of `model`.
    """
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    config = PeftConfig(
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_model,
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type] # peft takes fractions too
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules or None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return get_peft_model(model, config)
        except ValueError as error:
            raise RequestError(
                f"lora can't be added to {base_model} ({error}). "
                "Name layers of the model in lora's target_modules, such as q_proj and v_proj."
            ) from error


def merge(adapted: Any, folder: Path) -> Any:
    """Save the adapters alone to `folder`; the model with them worked into its weights."""
    adapted.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)  # peft's empty form of a model card
    return adapted.merge_and_unload()
