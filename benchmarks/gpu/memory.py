"""Peak memory of real steps against the plan, and settings that make them take less."""

import dataclasses
from typing import Any

import psutil
import torch

from benchmarks.gpu.scale import (
    NotRun,
    Scale,
    engine_step,
    make_engine,
    make_model,
    options,
    peak_gib,
    random_ids,
    shape_of,
)
from trainer.contract.topics import LoraConfig
from trainer.planning.lora_counts import adapter_parameters
from trainer.planning.memory_model import (
    BESIDE_TENSORS,
    GIB,
    Setting,
    gpu_parts,
)
from trainer.training.engine.adapters import add_adapters

# Name: changes of the engine's options; "lora" beside them. Eight, as far apart as they get.
SETTINGS: dict[str, dict[str, Any]] = {
    "bf16": {},
    "bf16, one context": {"batch_size": 1},
    "bf16, all layers again": {"checkpointed_layers": None},
    "bf16, half of the layers again": {"checkpointed_layers": "half"},
    "fp32": {"precision": "fp32", "zero_stage": 0},
    "bf16, 8-bit Adam": {"adam_bits": 8},
    "bf16, LoRA": {"lora": True},
    "bf16, Adam in host memory": {"offload": True},
}


def against_plan(scale: Scale, name: str) -> dict[str, Any]:
    """GiB that tensors took in two steps, as the plan says and as torch counted."""
    asked = dict(SETTINGS[name])
    with_lora = asked.pop("lora", False)
    if asked.get("checkpointed_layers") == "half":
        asked["checkpointed_layers"] = scale.layers // 2
    # 6 billion weights in fp32 are too many for a card, and their Adam for many a host.
    is_middle = asked.get("precision") == "fp32" or asked.get("offload")
    config = scale.config(**(scale.middle() if is_middle else {}))
    if scale.small and asked.get("offload"):
        raise NotRun("the small form compiles nothing: DeepSpeed's Adam for CPUs")
    chosen = options(scale, **asked)
    model = make_model(config, chosen.precision)
    shape, trained = shape_of(config), None
    if with_lora:
        lora = LoraConfig()
        add_adapters(model, lora, "random", 0)
        trained = adapter_parameters(shape, dataclasses.asdict(lora))
    parts = gpu_parts(
        shape,
        Setting(
            context=scale.context,
            batch_size=chosen.batch_size,
            zero_stage=chosen.zero_stage,
            precision=chosen.precision,
            offload=chosen.offload,
            checkpointed_layers=chosen.checkpointed_layers,
            trained_parameters=trained,
            adam_bits=chosen.adam_bits,
        ),
    )
    planned = sum(size for part, size in parts.items() if part not in BESIDE_TENSORS) / GIB
    engine = make_engine(model, chosen)
    ids = random_ids(scale, chosen.batch_size)
    for _ in range(2):
        engine_step(engine, ids)
    took = peak_gib()
    if took is None:  # the small form: of the host, with everything that a process holds
        return {"planned_gib": planned, "process_gib": psutil.Process().memory_info().rss / GIB}
    reserved = torch.cuda.max_memory_reserved() / GIB
    return {
        "planned_gib": planned,
        "measured_gib": took,
        "measured_over_planned": took / planned,
        "reserved_gib": reserved,
    }
