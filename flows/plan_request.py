"""The plan of a request: gather what it is made from, and show it. Writes nothing."""

import dataclasses
import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import configs
from tasks.cluster_deployment import adapters_refused
from tasks.local_adapters import refused_adapters
from trainer.contract.errors import RequestError
from trainer.contract.json_text import parse_json
from trainer.contract.parameter_types import NO_GPU
from trainer.contract.parameters import Parameters, cluster_settings
from trainer.contract.step_configs import FetchConfig, TokenizeConfig, load_step_config
from trainer.contract.volume import path_on_volume
from trainer.devices import available_cores, devices
from trainer.exam.kept import Asked, kept_result, key_of, only_vllm
from trainer.plan import facts as plan_facts
from trainer.plan.facts import PlanFacts
from trainer.planning.catalogue import Gpu, gpu_of_device, load_gpus, load_prices
from trainer.planning.gates import context_problems
from trainer.planning.model_shape import ModelShape
from trainer.planning.plan import Plan
from trainer.planning.planner import plan
from trainer.planning.work import Place

if TYPE_CHECKING:
    from trainer.tokens.text.sources import SourceList

HUB = "https://huggingface.co"
GIB = 1 << 30
PLANNED_NAME = "plan"  # of a plan that is for no run yet


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
    volume = home / parameters.pvc
    if on_cluster:
        cluster_settings(parameters)
    refused, sources = _refused(parameters, volume, num_contexts, on_cluster=on_cluster)
    try:
        facts = gather(parameters, volume, num_contexts, sources=sources)
    except RequestError as error:
        problems = with_other_parameters(refused, error.problems)
        if tuple(problems) == error.problems:
            raise  # as what it is
        raise RequestError(*problems) from error
    if on_cluster:  # this machine's disk says nothing of the claim's
        facts = dataclasses.replace(facts, free_gib=None, nights_left=None)
    made = plan_with(facts, parameters, on_cluster=on_cluster)
    return dataclasses.replace(made, problems=_once([*refused, *made.problems]))


def _refused(
    parameters: Parameters, volume: Path, num_contexts: int | None, *, on_cluster: bool
) -> tuple[list[str], "SourceList | None"]:
    """What `run` refuses before it plans, and the dataset's files where they were listed."""
    if parameters.inference_only:
        return [], None
    if (on_cluster or num_contexts is not None) and not volume.is_dir():
        return [], None  # planned without a volume
    problems = [] if on_cluster else missing_api_key(parameters)
    if on_cluster and parameters.serving.adapters:
        problems.append(adapters_refused(parameters.serving.adapters))
    if not on_cluster:
        names = [n for n in parameters.serving.adapters if n != parameters.run_name]
        problems += refused_adapters(names, volume, is_lora=parameters.lora is not None)
    try:
        path_on_volume(volume, "logs", parameters.logs)
    except RequestError as error:
        problems += error.problems
    values = configs.fetch_config(parameters.model_dump(), parameters.request)
    values |= {"volume": str(volume), "check_only": True}
    if parameters.run_name == PLANNED_NAME:
        values["run_name"] = ""
    config = load_step_config("fetch", json.dumps(values))
    assert isinstance(config, FetchConfig)
    found, sources = plan_facts.refused(config, with_dataset=num_contexts is None)
    return [*problems, *found], sources


def missing_api_key(parameters: Parameters) -> list[str]:
    """A sentence where this machine has not the API key that the server is to want."""
    name = parameters.serving.api_key
    if not name or os.environ.get(name, "").strip():
        return []
    return [
        f"serving.api_key names an environment variable that is not set (got {name!r}). "
        f"Set it to the key that clients are to send: export {name}=..."
    ]


def _once(problems: Iterable[str]) -> list[str]:
    """Each problem once: two checks may word the way out differently."""
    by_beginning = {problem.partition(" (got ")[0]: problem for problem in reversed([*problems])}
    return list(reversed(by_beginning.values()))


def with_other_parameters(refused: Sequence[str], also: Iterable[str]) -> list[str]:
    """What is refused, and of `also` what is wrong with parameters that it does not name."""
    named = {problem.split()[0] for problem in refused}
    return [*refused, *(problem for problem in also if problem.split()[0] not in named)]


def problems_with_context(parameters: Parameters, volume: Path) -> list[str]:
    """A sentence where the model, also one of the hub, has no positions for the context."""
    try:
        shape = ModelShape.from_config(_model(parameters, volume)[1])
    except (RequestError, ValueError):
        return []  # which is said by others
    return context_problems(shape, {"context": parameters.context})


def plan_with(facts: PlanFacts, parameters: Parameters, *, on_cluster: bool) -> Plan:
    """The plan that follows from the facts.

    Raises:
        RequestError: A catalogue can't be read.
    """
    try:
        catalogue, prices = load_gpus(), load_prices()
    except ValueError as error:
        raise RequestError(str(error)) from error
    place = _place(parameters, facts.free_gib, catalogue, on_cluster=on_cluster)
    made = plan(
        facts.shape,
        facts.num_contexts,
        _values(parameters, on_cluster=on_cluster),
        catalogue=catalogue,
        prices=prices,
        place=place,
        num_train_contexts=facts.num_train_contexts,
        estimated=facts.estimated,
        trained_tokens=facts.trained_tokens,
        fetches=facts.fetches and not parameters.tensorizer_uri,
        correction=facts.corrections.get(
            _gpu_class(parameters) if on_cluster else place.gpu_name, 1.0
        ),
    )
    problems = [*made.problems, *facts.exam_problems, *facts.skip_problems]
    serving = parameters.serving.engine
    told = [] if serving == "vllm" else only_vllm(parameters.model, facts.builtin_wrong)
    # Who asked for a service by name would have it refused after the training.
    refused = serving == "builtin" and parameters.run_inference
    return dataclasses.replace(
        made,
        problems=[*problems, *(told if refused else [])],
        notes=[*made.notes, *([] if refused else told)],
        nights_left=facts.nights_left,
        left_out=facts.left_out,
        padding_share=facts.padding_share,
        left_out_share=facts.left_out_share,
        parts=facts.parts,
        skips=not parameters.skip.is_empty,
    )


def _gpu_class(parameters: Parameters) -> str:
    return "" if parameters.trainer_gpu == NO_GPU else parameters.trainer_gpu


def _values(parameters: Parameters, *, on_cluster: bool) -> dict[str, Any]:
    """The parameters with the settings of the cluster that hold, as FINETUNE_CLUSTER has them."""
    values = parameters.model_dump()
    if on_cluster:
        values["cluster"] = dataclasses.asdict(cluster_settings(parameters))
    return values


def gather(
    parameters: Parameters,
    volume: Path,
    num_contexts: int | None = None,
    *,
    listing: str = "",
    sources: "SourceList | None" = None,
) -> PlanFacts:
    """The facts of a request, from the volume; the model's config.json may be the hub's.

    Args:
        num_contexts: Plan for a dataset of so many; None: count those of the dataset.
        listing: Of the dataset, where steps share one.
        sources: The dataset's files, where they were listed already.
    Raises:
        RequestError: The model's config or the dataset can't be read.
    """
    folder, model_config = _model(parameters, volume)
    values = configs.tokenize_config(
        parameters.model_dump(), model=folder, tokenizer=parameters.tokenizer, listing=listing
    )
    config = load_step_config("tokenize", json.dumps({**values, "volume": str(volume)}))
    assert isinstance(config, TokenizeConfig)
    try:
        facts = plan_facts.gather(
            config, model_config, num_contexts, sources=sources, lora=parameters.lora
        )
        return dataclasses.replace(facts, **_exam(parameters, volume, folder))
    except ValueError as error:
        raise RequestError(
            f"model can't be planned with (got {parameters.model!r}): {error}"
        ) from error


def _exam(parameters: Parameters, volume: Path, folder: str) -> dict[str, Any]:
    """What the kept result of the model exam says; where there is none, fetch makes it."""
    asked = Asked.of_request(parameters.request, parameters.trust_remote_code)
    path = volume / folder
    if not (path / "config.json").is_file():
        return {}
    result = kept_result(volume, key_of(path, asked))
    if result is None:
        return {}
    packed = bool(parameters.data.packing)
    problems = result.problems(parameters.model, asked.lora is not None, packed=packed)
    return {"exam_problems": problems, "builtin_wrong": result.builtin_wrong}


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
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ModelNotHereError(
            f"model is not on the volume, and its config.json can't be had from the hub "
            f"(got {name!r}: {error}). Correct it, or put the model's folder on the volume."
        ) from error


def _parsed(text: bytes, name: str) -> dict[str, Any]:
    try:
        found = parse_json(text)
    except ValueError as error:
        raise RequestError(f"model has a config.json that is no JSON (got {name!r})") from error
    if not isinstance(found, dict):
        raise RequestError(f"model has a config.json that is no object (got {name!r})")
    return found


def _place(
    parameters: Parameters,
    free_gib: float | None,
    catalogue: Mapping[str, Gpu],
    *,
    on_cluster: bool,
) -> Place:
    if on_cluster:
        on_cpu = parameters.trainer_gpu == NO_GPU
        return Place(free_gib=free_gib, on_cpu=on_cpu, on_cluster=True)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    here = devices()
    smallest = min(here, key=lambda device: device.memory_gib, default=None)
    return Place(
        on_cpu=smallest is None,
        gpu=gpu_of_device(catalogue, **dataclasses.asdict(smallest)) if smallest else None,
        gpu_name=smallest.name if smallest else "",
        gpus=len(here),
        memory_gib=memory / GIB,
        cores=available_cores(),
        free_gib=free_gib,
    )


def as_table(made: Plan) -> str:
    """The plan as aligned text."""
    rows = made.rows()
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in rows)
