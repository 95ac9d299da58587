"""Load LoRA's adapters beside their base model, without working them into its weights."""

from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from trainer.contract.json_text import parse_json
from trainer.contract.volume import path_on_volume
from trainer.models import load_model, load_tokenizer
from trainer.models.end_of_text import SETTINGS as END_SETTINGS
from trainer.serving.engine.adapters import read_settings

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

    settings = parse_json((folder / SETTINGS).read_text(encoding="utf-8"))
    base = _base_on(volume, settings["base_model_name_or_path"])
    adapted: Any = PeftModel.from_pretrained(load_model(base, **options), str(folder))
    # Training may have had a tokenizer of its own: it is saved beside the merged model.
    has_own = (folder.parent / "tokenizer_config.json").exists()
    tokenizer = load_tokenizer(folder.parent if has_own else base)
    model = adapted.base_model.model.eval()
    if (folder.parent / END_SETTINGS).exists():  # of the merged model: it says what ends a text
        model.generation_config = GenerationConfig.from_pretrained(folder.parent)
    return model, tokenizer


def load_base_of_adapters(volume: str, folder: Path, **options: Any) -> tuple[Any, Any]:
    """The base model of a finished LoRA model, with the tokenizer that this was trained with.

    Args:
        folder: The finished model, with `adapter` in it.
        options: Of `load_model`.
    Raises:
        RequestError: It has no adapter.
    """
    base = _base_on(volume, base_of(folder))
    model = load_model(base, **options).eval()
    if (folder / END_SETTINGS).exists():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model, load_tokenizer(folder, bool(options.get("trust_remote_code")))


def _base_on(volume: str, named: str) -> Path:
    """The base model's folder; training names it by its whole path, where the volume was then."""
    place, root = Path(named), Path(volume).resolve()
    inside = place.is_absolute() and place.resolve().is_relative_to(root)
    return path_on_volume(
        volume, "model", str(place.resolve().relative_to(root)) if inside else named
    )


def base_of(folder: Path) -> str:
    """The base model of a finished LoRA model, as its adapter's settings name it.

    Raises:
        RequestError: It has no adapter, or one that can't be served beside others.
    """
    return str(read_settings(folder / "adapter")["base_model_name_or_path"])
