"""The plan of a request: gather what it is made from, and show it. Writes nothing."""

import dataclasses
import json
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from flows.parameters import Parameters
from flows.planning import Place, Plan, plan
from infra.catalogue import load_gpus, load_prices
from tasks import configs
from trainer import plan_facts
from trainer.config import TokenizeConfig
from trainer.errors import RequestError
from trainer.plan_facts import PlanFacts
from trainer.volume_paths import path_on_volume

HUB = "https://huggingface.co"
GIB = 1 << 30
# Of NVIDIA's driver, also within Windows, and of AMD's. Whether torch can use what they are of is
# known where torch is loaded: in the step.
GPU_DEVICES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")


class ModelNotHereError(RequestError):
    """The model is not on the volume, as far as it is here, and not to be had from the hub."""


def plan_request(
    parameters: Parameters, home: Path, *, num_contexts: int | None, on_cluster: bool
) -> Plan:
    """Plan the run that the parameters ask for.

    Args:
        num_contexts: Plan for a dataset of so many; None: count those of the dataset.
        on_cluster: For the GPUs of the parameters, not for this machine.
    Raises:
        RequestError: The model's config, the dataset or a catalogue can't be read.
    """
    facts = gather(parameters, home / parameters.pvc, num_contexts)
    if on_cluster:  # this machine's disk says nothing of the claim's
        facts = dataclasses.replace(facts, free_gib=None)
    return plan_with(facts, parameters, on_cluster=on_cluster)


def plan_with(facts: PlanFacts, parameters: Parameters, *, on_cluster: bool) -> Plan:
    """The plan that follows from the facts.

    Raises:
        RequestError: A catalogue can't be read.
    """
    try:
        catalogue, prices = load_gpus(), load_prices()
    except ValueError as error:
        raise RequestError(str(error)) from error
    return plan(
        facts.shape,
        facts.num_contexts,
        parameters.model_dump(),
        catalogue=catalogue,
        prices=prices,
        place=_place(facts.free_gib, on_cluster=on_cluster),
        num_train_contexts=facts.num_train_contexts,
        estimated=facts.estimated,
        fetches=facts.fetches and not parameters.tensorizer_uri,
        correction=facts.corrections.get(parameters.trainer_gpu if on_cluster else "", 1.0),
    )


def gather(
    parameters: Parameters, volume: Path, num_contexts: int | None = None, *, listing: str = ""
) -> PlanFacts:
    """The facts of a request, from the volume; the model's config.json may be the hub's.

    Args:
        num_contexts: Plan for a dataset of so many; None: count those of the dataset.
        listing: Of the dataset, where steps share one.
    Raises:
        RequestError: The model's config or the dataset can't be read.
    """
    folder, model_config = _model(parameters, volume)
    values = configs.tokenize_config(
        parameters.model_dump(), model=folder, tokenizer=parameters.tokenizer, listing=listing
    )
    config = TokenizeConfig(**{**values, "volume": str(volume)})
    try:
        return plan_facts.gather(config, model_config, num_contexts)
    except ValueError as error:
        raise RequestError(
            f"model can't be planned with (got {parameters.model!r}): {error}"
        ) from error


def _model(parameters: Parameters, volume: Path) -> tuple[str, dict[str, Any]]:
    """The base model's folder on the volume, and its config.json: from there, else the hub."""
    name = parameters.model
    repository, _, revision = name.partition("@")
    fetched = f"models/{repository}" + (f"@{revision}" if revision else "")
    for place in (name, fetched):
        path = path_on_volume(volume, "model", place) / "config.json"
        if path.is_file():
            return place, _parsed(path.read_bytes(), name)
    hub = os.environ.get("HF_ENDPOINT", HUB)
    request = urllib.request.Request(f"{hub}/{repository}/resolve/{revision or 'main'}/config.json")
    if token := os.environ.get("HF_TOKEN"):
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return fetched, _parsed(response.read(), name)
    except (urllib.error.URLError, ValueError, TimeoutError) as error:
        raise ModelNotHereError(
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


def _place(free_gib: float | None, *, on_cluster: bool) -> Place:
    if on_cluster:
        return Place(free_gib=free_gib)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return Place(
        on_cpu=True,
        may_have_gpu=any(map(os.path.exists, GPU_DEVICES)),
        memory_gib=memory / GIB,
        cores=os.cpu_count() or 1,
        free_gib=free_gib,
    )


def as_table(made: Plan) -> str:
    """The plan as aligned text."""
    rows = made.rows()
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)
