"""What each optional setting costs or gains beside the plain one, and whether losses agree."""

import dataclasses
import importlib.util
import statistics
from typing import Any

import torch

from benchmarks.gpu.scale import (
    NotRun,
    Scale,
    engine_step,
    make_engine,
    make_model,
    needs_gpu,
    options,
    peak_gib,
    random_ids,
    seconds_of_steps,
)
from trainer.contract.topics import LoraConfig
from trainer.training.engine.adapters import add_adapters
from trainer.training.engine.engine import Engine

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "whole logits": {"chunked": False},
    "LoRA": {"lora": {}},
    "QLoRA": {"lora": {"base_bits": 4}},
    "8-bit Adam": {"adam_bits": 8},
    "fp16 with loss scaling": {"precision": "fp16"},
    "Liger's kernels": {"liger": True},
    "compiled layers": {"compile": True},
}


def one(scale: Scale, name: str) -> dict[str, Any]:
    """Median seconds of a step, the peak, and the losses of the first steps."""
    asked = dict(SETTINGS[name])
    if asked.get("precision") == "fp16":
        needs_gpu("fp16")
    if asked.get("liger"):
        needs_gpu("Liger")
        if importlib.util.find_spec("liger_kernel") is None:
            raise NotRun("liger-kernel is not installed")
    if asked.get("compile") and scale.small:
        raise NotRun("the small form compiles nothing: a compiler takes minutes")
    lora, chunked = asked.pop("lora", None), asked.pop("chunked", True)
    chosen = options(scale, **asked)
    model = _model(scale, chosen.precision, bool(asked.get("liger")))
    if lora is not None:
        _adapt(model, lora)
    engine = make_engine(model, chosen)
    if not chunked:
        _take_whole_logits(engine)
    losses: list[float] = []
    ids = random_ids(scale)
    seconds = seconds_of_steps(lambda: losses.append(engine_step(engine, ids)), scale)
    found = {
        "seconds": statistics.median(seconds),
        "first_loss": losses[0],
        "last_loss": losses[-1],
    }
    gib = peak_gib()
    return found | ({"peak_gib": gib} if gib is not None else {})


def _model(scale: Scale, precision: Any, for_liger: bool) -> Any:
    """GPT-J of 1.4 billion weights; Llama for Liger, which has nothing for GPT-J."""
    if not for_liger:
        return make_model(scale.config(**scale.middle()), precision)
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=scale.vocabulary,
        hidden_size=2048,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=5632,
        max_position_embeddings=scale.context,
    )
    return make_model(config, precision)


def _adapt(model: Any, asked: dict[str, Any]) -> None:
    known = {f.name for f in dataclasses.fields(LoraConfig)}
    if missing := asked.keys() - known:
        raise NotRun(f"this version's lora has no {', '.join(sorted(missing))}")
    if asked:  # QLoRA narrows the base while it is loaded from its folder
        raise NotRun("QLoRA reads a base from a folder: finetune with lora.base_bits=4 on it")
    add_adapters(model, LoraConfig(**asked), "random", 0)


def _take_whole_logits(engine: Engine) -> None:
    """Have the loss made from all logits, as for models that have no plain output layer."""
    causal: Any = engine._engine.module
    causal.chunked = False
    causal.model.get_output_embeddings().__class__ = torch.nn.Linear
