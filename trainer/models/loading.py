"""Load base and final models and their tokenizers from a folder, without running its code."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.initialization import no_init_weights
from transformers.utils import logging as transformers_logging

from trainer.errors import RequestError
from trainer.models import gptj

gptj.install()
transformers_logging.disable_progress_bar()  # a step's log is read line by line


def load_config(folder: Path, trust_remote_code: bool = False) -> Any:
    """The transformers configuration of the model in `folder`."""
    try:
        return AutoConfig.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise RequestError(
            f"model {folder.name} has no configuration that transformers understands ({error}). "
            "A model folder holds config.json, weights and a tokenizer."
        ) from error


def load_tokenizer(folder: Path, trust_remote_code: bool = False) -> Any:
    """The tokenizer in `folder`."""
    return AutoTokenizer.from_pretrained(
        folder, trust_remote_code=trust_remote_code, local_files_only=True
    )


def base_dtype(folder: Path) -> torch.dtype:
    """The precision in which the weights in `folder` are stored, as its config says."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    return getattr(torch, name)


def load_model(
    folder: Path, *, dtype: torch.dtype | None = None, trust_remote_code: bool = False
) -> Any:
    """A causal language model with its weights, in evaluation mode, on the CPU.

    Args:
        folder: A Hugging Face model folder.
        dtype: Precision to load in; None: the one it is stored in.
        trust_remote_code: Run the code in the folder.
    Raises:
        RequestError: There are no weights, or only ones that would run code.
    """
    config = load_config(folder, trust_remote_code)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder,
        config=config,
        dtype=dtype or base_dtype(folder),
        attn_implementation=attention_for(config, trust_remote_code),
        use_safetensors=_has_safetensors(folder),
        trust_remote_code=trust_remote_code,
        local_files_only=True,
        output_loading_info=True,
    )
    model, report = loaded
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise RequestError(
            f"model {folder.name} lacks {len(missing)} of its weights (for instance {missing[0]}). "
            "Training would begin with random numbers there. Bring the whole model."
        )
    return model.eval()


def empty_model(
    folder: Path, *, dtype: torch.dtype | None = None, trust_remote_code: bool = False
) -> Any:
    """The same model with memory for its weights and no numbers in it: to be filled at once."""
    config = load_config(folder, trust_remote_code)
    with no_init_weights():
        model: Any = AutoModelForCausalLM.from_config(
            config,
            dtype=torch.float32,  # what is computed here, as tables of rotations, is not rounded
            attn_implementation=attention_for(config, trust_remote_code),
            trust_remote_code=trust_remote_code,
        )
    model.config.dtype = dtype = dtype or base_dtype(folder)
    for parameter in model.parameters():
        parameter.data = torch.empty_like(parameter, dtype=dtype)
    model.tie_weights()  # part of the initialisation that was left out
    return model.eval()


def attention_for(config: Any, trust_remote_code: bool = False) -> str:
    """`sdpa` wherever the architecture has it, else `eager`."""
    if trust_remote_code and getattr(config, "auto_map", None):
        return "eager"
    model_class = AutoModelForCausalLM._model_mapping.get(type(config), None)
    return "sdpa" if getattr(model_class, "_supports_sdpa", False) else "eager"


def _has_safetensors(folder: Path) -> bool:
    """Whether to read safetensors; raises where there are no weights at all."""
    if any(folder.glob("*.safetensors")):
        return True
    if any(folder.glob("pytorch_model*.bin")):
        return False  # transformers reads these with weights_only=True alone
    raise RequestError(
        f"model {folder.name} has no weights (no *.safetensors in {folder}). "
        "A model folder holds config.json, weights and a tokenizer."
    )
