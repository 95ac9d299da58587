"""A model's dimensions with its weights counted exactly, where that can be done.

The count needs torch, which builds the architecture without memory for it, in a process of its
own: a few seconds, once per config. Where there is no torch, or the model is of a kind that
transformers does not know, the weights are worked out from config.json.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.contract.files import write_atomically
from trainer.contract.json_text import parse_json
from trainer.exam.kept import OFF, VARIABLE
from trainer.planning.model_shape import ModelShape

FOLDER = "cache/parameters"
LIMIT_SECONDS = 300
LORA = "finetune_lora"  # beside the config's own keys: see trainer/models/count.py


def shape_of(
    config: Mapping[str, Any], volume: Path, *, keep: bool = False, lora: Any = None
) -> ModelShape:
    """The dimensions of the model of a config.json.

    Args:
        volume: Where counts are kept.
        keep: Whether to write a new count there.
        lora: The topic, an object or its names and values: what it trains is counted with it.
    Raises:
        ValueError: The config names no width, layers, heads or vocabulary.
    """
    shape = ModelShape.from_config(config)
    # An earlier version's count is enough to plan with, and is made complete where it is kept.
    wanted = "shapes" if keep else "parameters"
    counted = _counted(config, volume, keep, _as_values(lora), wanted)
    if counted is None:
        return shape
    return dataclasses.replace(
        shape,
        counted=counted["parameters"],
        counted_adapters=counted.get("trained_parameters", 0),
        idle_parameters=min(counted["idle_parameters"], counted["parameters"]),
    )


def tensor_shapes(
    config: Mapping[str, Any], volume: Path, *, lora: Any = None
) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor of the model of a config.json, by name; empty: not known.

    A base model alone has names without the head's prefix: they are here, too.
    """
    counted = _counted(config, volume, False, _as_values(lora), "shapes") or {}
    prefix = f"{counted.get('prefix', '')}."
    shapes = {name: tuple(shape) for name, shape in counted.get("shapes", {}).items()}
    return {name.removeprefix(prefix): shape for name, shape in shapes.items()} | shapes


def _as_values(lora: Any) -> dict[str, Any]:
    """What of the topic decides how much is trained; empty where there is none."""
    if not lora:
        return {}
    values = lora if isinstance(lora, Mapping) else dataclasses.asdict(lora)
    names = ("rank", "target_modules", "dora", "modules_to_save")
    return {name: values[name] for name in names if values.get(name)}


def _counted(
    config: Mapping[str, Any],
    volume: Path,
    keep: bool,
    lora: Mapping[str, Any],
    wanted: str,
) -> dict[str, Any] | None:
    if os.environ.get(VARIABLE) == OFF or importlib.util.find_spec("torch") is None:
        return None
    text = json.dumps({**config, LORA: lora} if lora else config, sort_keys=True)
    version = importlib.metadata.version("transformers")
    key = hashlib.sha256(f"{version} {text}".encode()).hexdigest()[:32]
    path = volume / FOLDER / f"{key}.json"
    with contextlib.suppress(OSError, ValueError):
        kept = parse_json(path.read_text(encoding="utf-8"))
        if wanted in kept:  # earlier versions kept no shapes
            return kept
    counted = _count(text)
    if counted is not None and keep:
        write_atomically(path, json.dumps(counted))
    return counted


@functools.lru_cache(maxsize=8)  # a plan and its refusals ask for the same one
def _count(text: str) -> dict[str, Any] | None:
    """The counts by a process that loads torch; None where it can't."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "trainer.models.count"],
            input=text,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
            check=True,
        )
        return parse_json(done.stdout)
    except (subprocess.SubprocessError, ValueError):
        return None
