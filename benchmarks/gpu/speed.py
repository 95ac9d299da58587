"""Tokens a second and model FLOP/s of a training step of GPT-J 6B's shape, ours and others'."""

import importlib.util
import shutil
import statistics
from typing import Any

import torch

from benchmarks.gpu.scale import (
    NotRun,
    Scale,
    device,
    engine_step,
    make_engine,
    make_model,
    options,
    peak_gib,
    random_ids,
    seconds_of_steps,
    shape_of,
)
from benchmarks.training_peers import trainer_run
from trainer.planning.operations import peak_flops, step_flops
from trainer.training.engine.adam import AdamOptions
from trainer.training.engine.engine import DTYPES


def rates(config: Any, scale: Scale, seconds: list[float]) -> dict[str, Any]:
    """Tokens and operations a second of the median step."""
    middle, shape = statistics.median(seconds), shape_of(config)
    flops = step_flops(shape, [scale.context] * scale.batch) / middle
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    peak = peak_flops(name)
    found = {
        "tokens_per_second": scale.batch * scale.context / middle,
        "model_tflops": flops / 1e12,
        "seconds": middle,
        "slowest_seconds": max(seconds),
    }
    found |= {"peak_share": flops / peak} if peak else {}
    gib = peak_gib()
    return found | ({"peak_gib": gib} if gib is not None else {})


def ours(scale: Scale, layers: int | None, compiled: bool) -> dict[str, Any]:
    """The engine of a run, on batches that are in host memory as a run's are."""
    if compiled and scale.small:
        raise NotRun("the small form compiles nothing: a compiler takes minutes")
    config, ids = scale.config(), random_ids(scale)
    chosen = options(scale, checkpointed_layers=layers, compile=compiled)
    engine = make_engine(make_model(config, scale.precision), chosen)
    return rates(config, scale, seconds_of_steps(lambda: engine_step(engine, ids), scale))


def bare(scale: Scale, again: bool) -> dict[str, Any]:
    """The loop that anyone would write first: fp32 weights for Adam beside those in use."""
    config, ids = scale.config(), random_ids(scale).to(device())
    model = make_model(config, scale.precision)
    model.train()
    if again:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    used = [p for p in model.parameters() if p.requires_grad]
    kept = [p.detach().float() for p in used]
    ours = AdamOptions()
    betas = (ours.beta1, ours.beta2)
    adam = torch.optim.AdamW(
        kept, lr=1e-5, betas=betas, eps=ours.eps, weight_decay=ours.weight_decay, fused=True
    )

    def step() -> None:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        for weight, wide in zip(used, kept, strict=True):
            wide.grad, weight.grad = weight.grad.float(), None
        torch.nn.utils.clip_grad_norm_(kept, ours.clip)
        adam.step()
        adam.zero_grad()
        with torch.no_grad():
            torch._foreach_copy_(used, kept)

    return rates(config, scale, seconds_of_steps(step, scale))


def transformers_trainer(scale: Scale) -> dict[str, Any]:
    """transformers' Trainer, all layers computed again; GPT-J's own attention is eager."""
    config, ids = scale.config(), random_ids(scale)
    model = make_model(config, "fp32", attention="eager")
    steps = [[ids]] * (scale.warm_steps + scale.steps + 1)
    given = {
        "per_device_train_batch_size": scale.batch,
        "gradient_accumulation_steps": 1,
        "gradient_checkpointing": True,
        "bf16": DTYPES[scale.precision] == torch.bfloat16,
        "use_cpu": device() == "cpu",
        "optim": "adamw_torch_fused",
    }
    _, seconds = trainer_run(model, steps, **given)
    return rates(config, scale, seconds[scale.warm_steps :])


def torchtitan(scale: Scale) -> dict[str, Any]:
    """Not the same model: torchtitan has no GPT-J, so its Llama 3 8B is measured."""
    if importlib.util.find_spec("torchtitan") is None or shutil.which("torchrun") is None:
        raise NotRun("torchtitan is not installed")
    raise NotRun(
        "torchtitan trains from a checkout with its own configs, and has no GPT-J. Run its "
        "llama3_8b with --training.seq_len 2048 beside this, and compare peak shares"
    )
