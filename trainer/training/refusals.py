"""What a store and a config cannot be trained with, each with the way out."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.config import FinetuneConfig
from trainer.errors import RequestError
from trainer.setting_problems import setting_problems
from trainer.tokens.store import Manifest, TokenStore
from trainer.training.sizing import has_gpu
from trainer.volume_paths import path_on_volume


def refuse_what_cannot_be_trained(config: FinetuneConfig, store: TokenStore) -> int:
    """Hold the config to the store and the model.

    Returns:
        How many of the store's tokens the model has no embedding for yet.
    Raises:
        RequestError: With everything that stands in the way.
    """
    described = _described(path_on_volume(config.volume, "model", config.model))
    problems = [*_of_tokens(config, store.manifest, described), *_of_settings(config)]
    if problems:
        raise RequestError(*problems)
    known = described.get("vocab_size")
    return max(0, store.manifest.vocab_size - known) if known else 0


def _described(model: Path) -> dict[str, Any]:
    try:
        return json.loads((model / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(
            f"model {model.name} has no readable config.json ({error}). "
            "A model folder holds config.json, weights and a tokenizer."
        ) from error


def _of_tokens(
    config: FinetuneConfig, manifest: Manifest, described: dict[str, Any]
) -> Iterator[str]:
    limit = described.get("n_positions") or described.get("max_position_embeddings")
    if limit and manifest.context > limit:
        yield (
            f"context is longer than the model can take (got {manifest.context}). "
            f"{config.model} takes at most {limit}. Take a smaller context."
        )
    embeddings = described.get("vocab_size")
    added = {token["id"] for token in manifest.added_tokens}
    if embeddings and not added.issuperset(range(embeddings, manifest.vocab_size)):
        yield (
            f"tokens has ids up to {manifest.vocab_size - 1:,}, more than the model has embeddings "
            f"(got {embeddings:,} in {config.model}). Tokenize with the model's own tokenizer."
        )
    if not manifest.num_train_contexts:
        yield (
            "dataset leaves no context to train on (got 0 of "
            f"{manifest.num_contexts}). Raise train_ratio or bring more text."
        )


def _of_settings(config: FinetuneConfig) -> Iterator[str]:
    prompts = config.prompt_file
    if prompts and not path_on_volume(config.volume, "prompt_file", prompts).is_file():
        yield (
            f"prompt_file is not there (got {prompts!r}). "
            "Name a UTF-8 text file on the volume, one prompt a line."
        )
    yield from setting_problems(
        on_gpu=has_gpu(),
        force_fp16=config.force_fp16,
        precision=config.precision,
        adam_bits=config.optimizer.adam_bits,
        offload=config.optimizer.offload,
        liger=config.kernels.liger,
        compile=config.kernels.compile,
        zero_stage=config.zero_stage,
        processes=config.processes * config.nodes,
    )
