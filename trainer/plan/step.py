"""The plan step: `python -m trainer plan CONFIG.json`, with the fetch step's config.

Who follows a run on a cluster has no volume to plan from. This step looks at it, and
hands over what a plan is made from before anything is downloaded. It writes nothing but
the listing of an object store, for the steps after it.
"""

import dataclasses
import json
from typing import Any

from trainer.contract.errors import RequestError
from trainer.contract.json_text import parse_json
from trainer.contract.step_configs import FetchConfig, TokenizeConfig, load_step_config
from trainer.fetch.hub import parse_hub_id
from trainer.fetch.step import examine, looked_at
from trainer.fetch.what_is_there import Folders, without_weights
from trainer.plan.facts import PlanFacts, gather
from trainer.steps import StepResult
from trainer.tokens.text.sources import SourceList


def run(config: FetchConfig) -> StepResult:
    """Check the request as the fetch step does, and read what a plan is made from.

    Raises:
        RequestError: With everything that is wrong.
    """
    config, folders, sources = looked_at(dataclasses.replace(config, check_only=True))
    facts = _facts(config, folders, sources)
    about = "estimated" if facts.estimated else "exact"
    message = f"{facts.num_contexts:,} contexts ({about}), {facts.shape.parameters:,} weights"
    return StepResult(result={"plan_facts": facts.to_dict()}, message=message)


def _facts(config: FetchConfig, folders: Folders, sources: SourceList) -> PlanFacts:
    names = [f.name for f in dataclasses.fields(TokenizeConfig) if f.name in config.request]  # type: ignore[arg-type]
    asked: dict[str, Any] = {name: config.request[name] for name in names}
    places = {name: str(folder.relative_to(config.volume)) for name, folder in folders.items()}
    asked |= {**places, "volume": config.volume, "run_name": config.run_name}
    asked["dataset"] = config.dataset  # the request has it without a query string
    try:
        model_config = parse_json(_config_text(config, folders))
        tokenize = load_step_config("tokenize", json.dumps(asked))
        assert isinstance(tokenize, TokenizeConfig)
        lora = config.request.get("lora")
        facts = gather(tokenize, model_config, sources=sources, lora=lora)
        return dataclasses.replace(facts, **_exam(config, folders))
    except ValueError as error:
        raise RequestError(
            f"model can't be planned with (got {config.model!r}): {error}"
        ) from error


def _exam(config: FetchConfig, folders: Folders) -> dict[str, Any]:
    """What the model exam says of the model; of one that is not here yet, fetch says it."""
    if "model" not in folders:
        return {}
    try:
        result = examine(config, folders["model"])
    except RequestError as error:
        return {"exam_problems": list(error.problems)}
    return {"builtin_wrong": result.builtin_wrong}


def _config_text(config: FetchConfig, folders: Folders) -> bytes:
    """The model's config.json, from the hub where the model is not here yet."""
    if "model" in folders:
        return (folders["model"] / "config.json").read_bytes()
    from trainer.fetch.hub_client import read_config  # imports huggingface_hub

    hub_id = parse_hub_id(config.model)
    assert hub_id is not None, "checked before"
    weights = not without_weights(config, "model")
    return read_config("model", hub_id.id, hub_id.revision, weights=weights)
