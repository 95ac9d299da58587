"""Load a model folder for serving, and say how long each part took."""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import psutil
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trainer.checkpoints.seal import MANIFEST, file_record, read_manifest
from trainer.config import ServeConfig
from trainer.errors import RequestError
from trainer.models import load_model, load_tokenizer
from trainer.serving.gate import TOKENIZER_FILES, tokenizer_digest

Result = TypeVar("Result")


def timed(what: str, do: Callable[[], Result]) -> Result:
    """Do it and print how long it took."""
    begin = time.perf_counter()
    result = do()
    print(f"{what}: {time.perf_counter() - begin:.2f} s", flush=True)
    return result


def load(config: ServeConfig, folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer, on the GPU where there is one.

    Raises:
        RequestError: The folder is not there, or not a model's.
    """
    if not folder.is_dir():
        raise RequestError(f"model is not a folder on the volume (got {config.model!r}).")
    tokenizer = timed("tokenizer", lambda: load_tokenizer(folder, config.trust_remote_code))
    gpu = torch.cuda.is_available()
    model = timed(
        "weights",
        lambda: load_model(
            folder,
            # On a CPU float32 is both the exact and the fast precision.
            dtype=None if gpu else torch.float32,
            trust_remote_code=config.trust_remote_code,
        ),
    )
    if gpu:
        timed("to the GPU", lambda: model.to("cuda"))
    return model, tokenizer


def max_total_tokens(config: ServeConfig, model: PreTrainedModel) -> int:
    """Most tokens of prompt and answer: what the model can take, or less if so configured."""
    text = model.config.get_text_config()
    most = getattr(text, "max_position_embeddings", None) or 2048
    if config.max_total_tokens > most:
        raise RequestError(
            f"max_total_tokens is more than the model can take (got {config.max_total_tokens}). "
            f"It was made for {most}."
        )
    return config.max_total_tokens or most


def max_cached_tokens(model: PreTrainedModel) -> int:
    """Tokens whose keys and values fit into half of the memory that is free now.

    The other half is for activations, and for buffers while they are made anew.
    """
    text = model.config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    bytes_per_token = 2 * text.num_hidden_layers * heads * size * model.dtype.itemsize
    on_gpu = model.device.type == "cuda"
    free = torch.cuda.mem_get_info()[0] if on_gpu else psutil.virtual_memory().available
    return max(1, free // 2 // bytes_per_token)


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens that end an answer, as the model's folder says."""
    named = model.generation_config.eos_token_id if model.generation_config else None
    if named is None:
        named = tokenizer.eos_token_id
    if named is None:
        return frozenset()
    return frozenset(named if isinstance(named, list) else [named])


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of what is served: `model` and `tokenizer`.

    A model with a manifest has the digest written there, as the golden prompts prove that
    its weights are those; one without is named by its config and its files' sizes. The
    tokenizer's files are read: they are small.
    """
    if (folder / MANIFEST).exists():
        model = read_manifest(folder).digest
    else:
        sizes = {p.name: p.stat().st_size for p in sorted(folder.glob("*.safetensors"))}
        about = (folder / "config.json").read_bytes() + json.dumps(sizes).encode()
        model = hashlib.sha256(about).hexdigest()
    there = [folder / name for name in TOKENIZER_FILES if (folder / name).exists()]
    return {"model": model, "tokenizer": tokenizer_digest({p.name: file_record(p) for p in there})}


def dtype_name(model: PreTrainedModel) -> str:
    """The precision that is served, for instance `bfloat16`."""
    return str(model.dtype).removeprefix("torch.")
