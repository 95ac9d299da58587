"""The token that ends a text: what training put after each document, and who has to know it.

The final model's settings and tokenizer state it, the server stops at it, and the deploy step
expects it.
"""

from pathlib import Path
from typing import Any

from trainer.contract.json_text import parse_json

SETTINGS = "generation_config.json"


def ids_that_end(folder: Path, eot: int) -> list[int]:
    """The tokens that end an answer of a model that was trained from the one in `folder`.

    That is `eot`; and the others of the base model where it has several, and `eot` is one.
    """
    try:
        named = parse_json((folder / SETTINGS).read_text(encoding="utf-8")).get("eos_token_id")
    except (OSError, ValueError, AttributeError):
        named = None
    return named if isinstance(named, list) and eot in named else [eot]


def set_end(model: Any, folder: Path, eot: int) -> None:
    """Have a model's settings say what ends a text; `folder` holds its base model."""
    ends = ids_that_end(folder, eot)
    model.generation_config.eos_token_id = ends if len(ends) > 1 else eot
    text = model.config.get_text_config()
    for config in {id(c): c for c in (model.config, text)}.values():
        named = getattr(config, "eos_token_id", None)
        if not (isinstance(named, list) and eot in named):
            config.eos_token_id = eot
