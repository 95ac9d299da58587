"""`finetune plan`: gather what a plan is made from, and show it. Writes nothing."""

import json
import os
import shutil
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from flows.parameters import Parameters
from flows.planning import Place, Plan, plan
from infra.catalogue import load_gpus, load_prices
from tasks import configs
from tasks.wording import format_seconds
from trainer.config import TokenizeConfig, path_on_volume
from trainer.context_count import ContextCount, count_contexts
from trainer.errors import RequestError

HUB = "https://huggingface.co"
GIB = 1 << 30


def plan_request(
    parameters: Parameters, home: Path, *, num_contexts: int | None, on_cluster: bool
) -> Plan:
    """Plan the run that the parameters ask for.

    Args:
        num_contexts: Plan for a dataset of so many; None: count those of the dataset.
        on_cluster: For the GPUs of the parameters, not for this machine.
    Raises:
        RequestError: The model's config or the dataset can't be read.
    """
    volume = home / parameters.pvc
    config = _model_config(parameters, volume)
    counted = (
        ContextCount(num_contexts=num_contexts, num_train_contexts=None, estimated=False)
        if num_contexts is not None
        else _count(parameters, volume)
    )
    try:
        return plan(
            config,
            counted.num_contexts,
            parameters.model_dump(),
            catalogue=load_gpus(),
            prices=load_prices(),
            place=Place() if on_cluster else _this_machine(volume),
            num_train_contexts=counted.num_train_contexts,
            estimated=counted.estimated,
        )
    except ValueError as error:
        raise RequestError(
            f"model can't be planned with (got {parameters.model!r}): {error}"
        ) from error


def _count(parameters: Parameters, volume: Path) -> ContextCount:
    config = configs.tokenize_config(
        parameters.model_dump(), model=parameters.model, tokenizer=parameters.tokenizer
    )
    return count_contexts(TokenizeConfig(**{**config, "volume": str(volume), "run_name": ""}))


def _model_config(parameters: Parameters, volume: Path) -> dict[str, Any]:
    """The base model's config.json: of the volume, else of the hub."""
    name = parameters.model
    repository, _, revision = name.partition("@")
    places = (name, f"models/{repository}" + (f"@{revision}" if revision else ""))
    for place in places:
        path = path_on_volume(volume, "model", place) / "config.json"
        if path.is_file():
            return _parsed(path.read_bytes(), name)
    hub = os.environ.get("HF_ENDPOINT", HUB)
    request = urllib.request.Request(f"{hub}/{repository}/resolve/{revision or 'main'}/config.json")
    if token := os.environ.get("HF_TOKEN"):
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return _parsed(response.read(), name)
    except (urllib.error.URLError, ValueError, TimeoutError) as error:
        raise RequestError(
            f"model is not on the volume, and its config.json can't be had from the hub "
            f"(got {name!r}: {error}). Correct it, or put the model's folder on the volume."
        ) from error


def _parsed(text: bytes, name: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise RequestError(f"model has a config.json that is no JSON (got {name!r})") from error
    if not isinstance(found, dict):
        raise RequestError(f"model has a config.json that is no object (got {name!r})")
    return found


def _this_machine(volume: Path) -> Place:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Place(
        on_cpu=True,
        memory_gib=memory / GIB,
        cores=os.cpu_count() or 1,
        free_gib=shutil.disk_usage(volume).free / GIB if volume.is_dir() else None,
    )


def as_table(made: Plan) -> str:
    """The plan for people."""
    about = "estimated" if made.estimated else "exact"
    per_step = made.batch_size * made.gradients * made.processes
    setting = [
        f"batch_size {made.batch_size}, gradients {made.gradients}, processes {made.processes}",
        f"zero_stage {made.zero_stage}, {'offload' if made.offload else 'no offload'}",
    ]
    if made.checkpointed_layers:
        setting.append(f"{made.checkpointed_layers} of {made.layers} layers computed again")
    lines = [
        ("contexts", f"{made.num_contexts:,} ({about}), {made.num_train_contexts:,} to train on"),
        ("steps", f"{made.steps:,} of {per_step} contexts, {made.tokens:,} tokens"),
        ("model", f"{made.parameters / 1e6:,.1f} M weights, {made.precision}"),
        ("setting", ", ".join(setting)),
        (
            "memory of the host",
            f"{made.host_memory_gib:.1f} of {made.host_memory_limit_gib:.1f} GiB: "
            + _parts(made.host_memory_parts_gib),
        ),
        ("disk", f"{made.disk_gib:.2f} GiB, {made.checkpoint_gib:.2f} for a checkpoint"),
        (
            "time",
            f"{made.seconds_per_step:.1f} s a step, {format_seconds(made.hours * 3600)} in all",
        ),
    ]
    if made.gpu:
        figures = f"{made.gpu_memory_gib:.1f} of {made.gpu_memory_limit_gib:.1f} GiB: "
        lines.append((f"memory of {made.gpu}", figures + _parts(made.gpu_memory_parts_gib)))
    if made.dollars:
        lines.append(("cost", f"${made.dollars:,.2f} at ${made.dollars_per_hour:.2f} an hour"))
    width = max(len(name) for name, _ in lines)
    shown = [f"{name:<{width}}  {text}" for name, text in lines]
    return "\n".join([*shown, *(f"refused: {problem}" for problem in made.problems)])


def _parts(parts: dict[str, float]) -> str:
    return ", ".join(f"{name} {gib:.2f}" for name, gib in parts.items() if gib)
