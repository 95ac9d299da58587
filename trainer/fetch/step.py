"""The fetch step: `python -m trainer fetch CONFIG.json`."""

import contextlib
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

from trainer.contract.errors import RequestError
from trainer.contract.events import notice, say
from trainer.contract.json_text import parse_json
from trainer.contract.step_configs import FetchConfig
from trainer.exam.kept import Asked, ExamResult, exam_of
from trainer.fetch.checks import check_volume
from trainer.fetch.hub import fetch_from_hub, parse_hub_id
from trainer.fetch.inputs import digests_of
from trainer.fetch.model_folder import ModelFacts
from trainer.fetch.records import check_records
from trainer.fetch.what_is_there import (
    Folders,
    Problems,
    asked_models,
    check_model,
    check_what_is_there,
    without_weights,
)
from trainer.parameter_counts import shape_of
from trainer.retention.needed import mark_in_use
from trainer.steps import StepResult
from trainer.tokens.text.sources import SourceList


def run(config: FetchConfig) -> StepResult:
    """Check the request against the volume, and make sure that the model is on it.

    Raises:
        RequestError: With everything that is wrong.
    """
    config, folders, sources = looked_at(config)
    if config.check_only:
        if "model" in folders:
            examine(config, folders["model"])
        return StepResult(message="the request can be run")
    for folder in folders.values():
        mark_in_use(Path(config.volume), folder)
    # A download takes long: it is begun only when nothing else is wrong.
    downloaded = [_download(config, parameter, folders) for parameter in asked_models(config)]
    if any(downloaded):
        check_records(config, sources, folders[asked_models(config)[-1]])
    facts = check_model(config, folders, sources if any(downloaded) else None)
    described = parse_json((folders["model"] / "config.json").read_text(encoding="utf-8"))
    with contextlib.suppress(ValueError):  # it says too little to plan with, which is no problem
        shape_of(described, Path(config.volume), keep=True, lora=config.request.get("lora"))
    made = _result(config, facts, folders, any(downloaded), examine(config, folders["model"]))
    made.result["digests"] = digests_of(config, folders, sources)
    return made


def examine(config: FetchConfig, folder: Path, tell: Callable[[str], None] = notice) -> ExamResult:
    """The model exam's result for the model in `folder`; what it means is said.

    Args:
        tell: Says that it is being made.
    Raises:
        RequestError: The model would be trained wrongly.
    """
    asked = Asked.of_request(config.request, config.trust_remote_code)
    result = exam_of(Path(config.volume), folder, asked, tell)
    packed = bool(config.data.packing)
    if problems := result.problems(config.model, asked.lora is not None, packed=packed):
        raise RequestError(*problems)
    if config.check_only:  # the step itself says them
        return result
    for note in result.notes(config.model):
        say(note)
    if result.is_switched_off:
        print(f"model {config.model} is not examined ({result.not_examined})", flush=True)
    return result


def looked_at(config: FetchConfig) -> tuple[FetchConfig, Folders, SourceList]:
    """The request with its volume by its true path, the folders that are on it, the dataset.

    Raises:
        RequestError: With everything that is wrong, as far as it needs no download.
    """
    # As path_on_volume has it: a volume may be named by a link or a relative path.
    config = dataclasses.replace(config, volume=str(Path(config.volume).resolve()))
    check_volume(Path(config.volume), touch=not config.check_only)
    return config, *check_what_is_there(config)


def refusals(
    config: FetchConfig, *, with_dataset: bool
) -> tuple[list[str], Folders, SourceList | None]:
    """What this step would refuse, for a plan; the folders on the volume, and the dataset.

    A plan needs no more than a model's config.json. What is not there yet is no problem of it:
    weights, tokenizer, and a dataset that it is not made with.

    Args:
        with_dataset: Whether the plan is made with the dataset.
    Raises:
        StepError: The dataset's store does not answer.
    """
    problems, folders, sources = Problems(), Folders(), None
    with problems.collected():
        config = dataclasses.replace(config, volume=str(Path(config.volume).resolve()))
        check_volume(Path(config.volume), touch=False)
        folders, sources = check_what_is_there(config, with_dataset=with_dataset, whole=False)
    if not problems.found and "model" in folders:
        with problems.collected():
            examine(config, folders["model"], lambda told: print(told, file=sys.stderr))
    return problems.found, folders, sources


def _download(config: FetchConfig, parameter: str, folders: Folders) -> bool:
    """Bring what `parameter` names from the hub unless it is here; says whether it did."""
    if parameter in folders:
        return False
    hub_id = parse_hub_id(getattr(config, parameter))
    assert hub_id is not None, "checked before"
    folders[parameter], downloaded = fetch_from_hub(
        Path(config.volume),
        parameter,
        hub_id,
        tokenizer_only=without_weights(config, parameter),
        with_code=config.trust_remote_code,
    )
    return downloaded


def _result(
    config: FetchConfig, facts: ModelFacts, folders: Folders, downloaded: bool, exam: ExamResult
) -> StepResult:
    size = f"{facts.parameters / 1e6:,.1f} M parameters, {facts.bytes / 1e6:,.1f} MB"
    places = {name: str(folder.relative_to(config.volume)) for name, folder in folders.items()}
    return StepResult(
        result={
            "model": places["model"],
            "tokenizer": places.get("tokenizer", ""),
            "model_bytes": facts.bytes,
            "parameters": facts.parameters,
            "context_limit": facts.context_limit,
            "downloaded": downloaded,
            "exam": exam.table(),
        },
        message=f"{places['model']}: {size}, {'downloaded' if downloaded else 'cached'}",
        reused=not downloaded,
    )
