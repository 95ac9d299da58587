"""Load LoRA's adapters beside their base model, without working them into its weights."""

import json
from pathlib import Path
from typing import Any

from trainer.models import load_model, load_tokenizer
from trainer.volume_paths import path_on_volume

SETTINGS = "adapter_config.json"


def is_adapter(folder: Path) -> bool:
    """Whether `folder` holds adapters alone, as `final/adapter` does."""
    return (folder / SETTINGS).exists()


def load_adapter(volume: str, folder: Path, **options: Any) -> tuple[Any, Any]:
    """The base model with the adapters in its layers, and the tokenizer of both.

    Args:
        options: Of `load_model`, for the base model.
    """
    from peft import PeftModel

    settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
    base = path_on_volume(volume, "model", settings["base_model_name_or_path"])
    adapted: Any = PeftModel.from_pretrained(load_model(base, **options), str(folder))
    # Training may have had a tokenizer of its own: it is saved beside the merged model.
    has_own = (folder.parent / "tokenizer_config.json").exists()
    tokenizer = load_tokenizer(folder.parent if has_own else base)
    return adapted.base_model.model.eval(), tokenizer
