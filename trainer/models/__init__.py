"""Models and tokenizers from folders on the volume: what training, evaluation and serving load.

Weights come from safetensors or a file of tensorizer's; pickled `.bin` weights only where
they load with torch's `weights_only`. GPT-J gets scaled-dot-product attention (gptj.py).
Importing this package loads torch and transformers.
"""

from trainer.models.base_model import load_base
from trainer.models.loading import (
    base_dtype,
    empty_model,
    load_config,
    load_model,
    load_tokenizer,
)

__all__ = ["base_dtype", "empty_model", "load_base", "load_config", "load_model", "load_tokenizer"]
