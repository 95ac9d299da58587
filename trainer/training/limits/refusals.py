"""What a store and a config cannot be trained with, each with the way out."""

import dataclasses
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from trainer.contract.errors import RequestError
from trainer.contract.json_text import parse_json
from trainer.contract.step_configs import FinetuneConfig
from trainer.contract.volume import path_on_volume
from trainer.devices import available_cores, devices, has_gpu
from trainer.planning.model_shape import positions_of
from trainer.planning.setting_rules import process_problems, schedule_problems, setting_problems
from trainer.tokens.store import Manifest, TokenStore
from trainer.training.plan import TrainingPlan


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


def refuse_schedule(config: FinetuneConfig, plan: TrainingPlan) -> None:
    """Raise RequestError where the learning rate's curve has no room in the run's steps."""
    schedule = dataclasses.asdict(config.schedule)  # type: ignore[call-overload]
    if problems := list(schedule_problems(plan.whole_steps, config.warmup_ratio, schedule)):
        raise RequestError(*problems)


def _described(model: Path) -> dict[str, Any]:
    try:
        return parse_json((model / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(
            f"model {model.name} has no readable config.json ({error}). "
            "A model folder holds config.json, weights and a tokenizer."
        ) from error


def _of_tokens(
    config: FinetuneConfig, manifest: Manifest, described: dict[str, Any]
) -> Iterator[str]:
    limit = positions_of(described)
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
    yield from process_problems(config.processes, len(devices()), available_cores())
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
        base_bits=config.lora.base_bits if config.lora else 16,
    )
    if config.lora and config.lora.base_bits == 4 and find_spec("bitsandbytes") is None:
        yield (
            "lora.base_bits=4 needs the package bitsandbytes (it is not installed). "
            "Install it where the run trains, or take base_bits=16."
        )
