"""Load a model folder for serving, and say how long each part took."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil
import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from trainer.contract.errors import RequestError
from trainer.contract.sealed_folder import MANIFEST, file_record, read_manifest
from trainer.contract.step_configs import ServeConfig
from trainer.contract.volume import is_url, path_on_volume
from trainer.models import base_dtype, load_base, load_config, load_tokenizer
from trainer.models.attention_sizes import head_size, key_heads
from trainer.serving.adapter import SETTINGS, is_adapter, load_adapter, load_base_of_adapters
from trainer.serving.checkpoint import is_checkpoint, load_checkpoint
from trainer.serving.deploy.gate import TOKENIZER_FILES, tokenizer_digest
from trainer.serving.how_to_serve import HowToServe

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
        RequestError: The folder is not a model's.
    """
    gpu = torch.cuda.is_available()
    # On a CPU float32 is both the exact and the fast precision.
    options: dict[str, Any] = {"dtype": None if gpu else torch.float32}
    options["trust_remote_code"] = config.trust_remote_code
    if config.adapters:
        model, tokenizer = timed(
            "weights", lambda: load_base_of_adapters(config.volume, folder, **options)
        )
    elif is_checkpoint(folder):
        model, tokenizer = timed("weights", lambda: load_checkpoint(config.volume, folder))
    elif is_adapter(folder):
        model, tokenizer = timed("weights", lambda: load_adapter(config.volume, folder, **options))
    else:
        tokenizer = timed("tokenizer", lambda: load_tokenizer(folder, config.trust_remote_code))
        uri = config.tensorizer_uri
        if uri and not is_url(uri):
            uri = str(path_on_volume(folder, "tensorizer_uri", uri))
        model = timed("weights", lambda: load_base(folder, tensorizer=uri, **options))
    if gpu:
        timed("to the GPU", lambda: model.to("cuda"))
    return model, tokenizer


@dataclass(frozen=True)
class About:
    """What the routes and the limits need to know of a model."""

    dtype: str  # for instance "bfloat16"
    vocabulary: int
    max_positions: int
    end_ids: frozenset[int]  # tokens that end an answer, as the model's folder says


def about_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> About:
    """Of a model that is loaded."""
    return _about(model.config, model.generation_config, str(model.dtype), tokenizer)


def about_folder(config: ServeConfig, folder: Path) -> tuple[PreTrainedTokenizerBase, About]:
    """Of a model that another engine loads; with its tokenizer."""
    tokenizer = timed("tokenizer", lambda: load_tokenizer(folder, config.trust_remote_code))
    has_settings = (folder / "generation_config.json").exists()
    settings = GenerationConfig.from_pretrained(folder) if has_settings else None
    model_config = load_config(folder, config.trust_remote_code)
    return tokenizer, _about(model_config, settings, str(base_dtype(folder)), tokenizer)


def _about(
    config: Any, settings: GenerationConfig | None, dtype: str, tokenizer: PreTrainedTokenizerBase
) -> About:
    text = config.get_text_config()
    return About(
        dtype=dtype.removeprefix("torch."),
        vocabulary=int(text.vocab_size),
        max_positions=getattr(text, "max_position_embeddings", None) or 2048,
        end_ids=_end_ids(settings, tokenizer),
    )


def end_ids_of(folder: Path, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens that end an answer of the model in `folder`."""
    has_settings = (folder / "generation_config.json").exists()
    return _end_ids(GenerationConfig.from_pretrained(folder) if has_settings else None, tokenizer)


def _end_ids(
    settings: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase
) -> frozenset[int]:
    named = settings.eos_token_id if settings else None
    if named is None:
        named = tokenizer.eos_token_id
    return frozenset([] if named is None else named if isinstance(named, list) else [named])


def max_total_tokens(config: ServeConfig, about: About) -> int:
    """Most tokens of prompt and answer: what the model can take, or less if so configured."""
    if config.max_total_tokens > about.max_positions:
        raise RequestError(
            f"max_total_tokens is more than the model can take (got {config.max_total_tokens}). "
            f"It was made for {about.max_positions}."
        )
    return config.max_total_tokens or about.max_positions


def max_cached_tokens(model: PreTrainedModel, how: HowToServe) -> int:
    """Tokens whose keys and values fit into half of the memory that is free now.

    The other half is for activations, and for buffers while they are made anew.
    """
    bytes_per_token = how.bytes_per_token or _estimated_bytes_per_token(model)
    on_gpu = model.device.type == "cuda"
    free = torch.cuda.mem_get_info()[0] if on_gpu else psutil.virtual_memory().available
    return max(1, free // 2 // bytes_per_token)


def _estimated_bytes_per_token(model: PreTrainedModel) -> int:
    """As if each layer held keys and values; 1 where the config names no attention heads."""
    text = model.config.get_text_config()
    if not isinstance(getattr(text, "num_attention_heads", None), int):
        return 1
    return 2 * text.num_hidden_layers * key_heads(text) * head_size(text) * model.dtype.itemsize


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of what is served: `model` and `tokenizer`.

    A model with a manifest has the digest written there, as the golden prompts prove that
    its weights are those; one without is named by its config and its files' sizes. The
    tokenizer's files are read: they are small.
    """
    if is_checkpoint(folder):
        model = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    elif (folder / MANIFEST).exists():
        model = read_manifest(folder).digest
    else:
        sizes = {p.name: p.stat().st_size for p in sorted(folder.glob("*.safetensors"))}
        name = SETTINGS if is_adapter(folder) else "config.json"
        about = (folder / name).read_bytes() + json.dumps(sizes).encode()
        model = hashlib.sha256(about).hexdigest()
    there = [folder / name for name in TOKENIZER_FILES if (folder / name).exists()]
    return {"model": model, "tokenizer": tokenizer_digest({p.name: file_record(p) for p in there})}
