"""Load base and final models and their tokenizers from a folder, without running its code."""

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.core_model_loading import build_glob_alternation
from transformers.initialization import no_init_weights
from transformers.utils import logging as transformers_logging

from trainer.checkpoints.tensors import equal_in_files
from trainer.contract import events
from trainer.contract.errors import RequestError
from trainer.contract.json_text import parse_json
from trainer.fetch.weights import INDEX, SINGLE, read_tensors, weight_files
from trainer.models import gptj
from trainer.models.buffers import persistent_buffers
from trainer.tokens import model_tokenizer

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
    """The tokenizer in `folder`, as its tokenizer.json says: see tokens/model_tokenizer.py."""
    tokenizer, notice = model_tokenizer.load_tokenizer(folder, trust_remote_code)
    if notice:
        events.notice(f"tokenizer: {notice}")
    return tokenizer


def base_dtype(folder: Path) -> torch.dtype:
    """The precision in which the weights in `folder` are stored, as its config says."""
    config = parse_json((folder / "config.json").read_text(encoding="utf-8"))
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
    untie_what_differs(config, folder, trust_remote_code)
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
    _freeze_as_declared(model, trust_remote_code)
    return model.eval()


def empty_model(
    folder: Path, *, dtype: torch.dtype | None = None, trust_remote_code: bool = False
) -> Any:
    """The same model with memory for its weights and no numbers in it: to be filled at once."""
    config = load_config(folder, trust_remote_code)
    untie_what_differs(config, folder, trust_remote_code)
    with no_init_weights():
        # What is computed here, as tables of rotations, is not rounded.
        model = _built(config, torch.float32, trust_remote_code)
    dtype = dtype or base_dtype(folder)
    kept = persistent_buffers(model)
    dtypes = {}
    if kept and dtype != torch.float32:
        dtypes = dtypes_when_loaded(config, dtype, trust_remote_code)
    model.config.dtype = dtype
    for parameter in model.parameters():
        parameter.data = torch.empty_like(parameter, dtype=dtype)
    for name, buffer in kept.items():
        buffer.data = buffer.to(dtypes.get(name, buffer.dtype))
    model.tie_weights()  # part of the initialisation that was left out
    return model.eval()


def untie_what_differs(config: Any, folder: Path, trust_remote_code: bool = False) -> str:
    """Where the config ties two tensors and the files hold two different ones, untie them.

    transformers' `from_pretrained` does that too, but its config continues saying the opposite.

    Returns:
        A sentence that says so; empty: nothing was to be done.
    """
    text = config.get_text_config()
    if not getattr(text, "tie_word_embeddings", False) or not _may_hold_both(folder, text):
        return ""
    with torch.device("meta"), no_init_weights():
        tied = _built(copy.deepcopy(config), torch.float32, trust_remote_code).all_tied_weights_keys
    files = weight_files(folder)
    for target, source in tied.items():
        if not equal_in_files(files, target, source):
            for part in (text, config):
                part.tie_word_embeddings = False
            return (
                f"model {folder.name} ties {target} to {source} in its config.json, and its files "
                "hold two different tensors: they are not tied, as transformers does it"
            )
    return ""


def _may_hold_both(folder: Path, text: Any) -> bool:
    """Whether the files hold two matrices with a row for each token; from their headers."""
    try:
        tensors = read_tensors(folder)
    except (ValueError, FileNotFoundError):
        return False
    shape = (getattr(text, "vocab_size", 0), getattr(text, "hidden_size", 0))
    return sum(tensor.shape == shape for tensor in tensors.values()) > 1


def dtypes_when_loaded(
    config: Any, dtype: torch.dtype, trust_remote_code: bool = False
) -> dict[str, torch.dtype]:
    """The type that transformers gives each parameter and buffer of a model loaded in `dtype`.

    Source: transformers 5.23, core_model_loading.py: a tensor keeps the type that the model's
    code gave it, and `_keep_in_fp32_modules` goes before that.
    """
    with torch.device("meta"), no_init_weights():
        model = _built(copy.deepcopy(config), dtype, trust_remote_code)
    plan = model._get_dtype_plan(dtype)
    kept = build_glob_alternation(list(plan))[0] if plan else None
    return {
        name: torch.float32 if kept and kept.search(name) and t.is_floating_point() else t.dtype
        for name, t in (*model.named_parameters(), *model.named_buffers())
    }


def _freeze_as_declared(model: Any, trust_remote_code: bool) -> None:
    """Take the gradients away that `from_pretrained` gives parameters declared without."""
    with torch.device("meta"), no_init_weights():
        declared = _built(copy.deepcopy(model.config), torch.float32, trust_remote_code)
    for name, parameter in declared.named_parameters():
        if not parameter.requires_grad:
            model.get_parameter(name).requires_grad_(False)


def _built(config: Any, dtype: torch.dtype, trust_remote_code: bool) -> Any:
    return AutoModelForCausalLM.from_config(
        config,
        dtype=dtype,
        attn_implementation=attention_for(config, trust_remote_code),
        trust_remote_code=trust_remote_code,
    )


def attention_for(config: Any, trust_remote_code: bool = False) -> str:
    """`sdpa` wherever the architecture has it, else `eager`."""
    if trust_remote_code and getattr(config, "auto_map", None):
        return "eager"
    model_class = AutoModelForCausalLM._model_mapping.get(type(config), None)
    return "sdpa" if getattr(model_class, "_supports_sdpa", False) else "eager"


def _has_safetensors(folder: Path) -> bool:
    """Whether to read safetensors; raises where there are no weights at all."""
    if any((folder / name).is_file() for name in (SINGLE, INDEX)):
        return True
    if any(folder.glob("pytorch_model*.bin")):
        return False  # transformers reads these with weights_only=True alone
    raise RequestError(
        f"model {folder.name} has no weights (neither {SINGLE} nor {INDEX} in {folder}). "
        "A model folder holds config.json, weights and a tokenizer."
    )
