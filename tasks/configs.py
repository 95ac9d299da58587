"""From the flow's parameters to each step's config: plain data in, plain data out."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from trainer.config import STEP_CONFIGS, load_step_config
from trainer.topics import SamplingConfig

# What does not define a step's work: a step under way is adopted whatever these are.
NOT_DEFINING = frozenset(
    "volume logs project_id wandb_key processes nodes no_resume attempt earlier_outcomes plan "
    "flow_began asked listing workers paranoid checkpoints budget grace_seconds".split()
)


def fetch_config(
    parameters: Mapping[str, Any], request: Mapping[str, Any], *, listing: str = ""
) -> dict[str, Any]:
    """Config of the fetch step, and of the plan step; `request` is what defines the run."""
    return _config("fetch", parameters, request=dict(request), listing=listing)


def tokenize_config(
    parameters: Mapping[str, Any], *, model: str, tokenizer: str, listing: str = ""
) -> dict[str, Any]:
    """Config of the tokenize step, for the folders that fetch found or made."""
    return _config("tokenize", parameters, model=model, tokenizer=tokenizer, listing=listing)


def finetune_config(
    parameters: Mapping[str, Any],
    request: Mapping[str, Any],
    *,
    model: str,
    tokenizer: str,
    tokens: str,
    nodes: int = 1,
    grace_seconds: float = 120.0,
    attempt: str,
    earlier_outcomes: list[dict[str, Any]],
    plan: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Config of the finetune step, for the store that tokenize made."""
    return _config(
        "finetune",
        parameters,
        model=model,
        tokenizer=tokenizer,
        tokens=tokens,
        sampling=_sampling(parameters),
        processes=parameters["trainer_gpus"],
        nodes=nodes,
        grace_seconds=grace_seconds,
        # A dataset whose content changed gives another store, and so is another request.
        request={**request, "tokens": tokens},
        attempt=attempt,
        earlier_outcomes=earlier_outcomes,
        plan=dict(plan or {}),
    )


def evaluate_config(parameters: Mapping[str, Any], *, model: str, tokens: str) -> dict[str, Any]:
    """Config of the evaluate step."""
    return _config(
        "evaluate", parameters, model=model, tokens=tokens, sampling=_sampling(parameters)
    )


def deploy_config(parameters: Mapping[str, Any], **known: Any) -> dict[str, Any]:
    """Config of the deploy step, on a cluster."""
    values = {name: value for name, value in parameters.items() if name != "serving"}
    return _config("deploy", values, **known)


def champion_config(
    parameters: Mapping[str, Any],
    request: Mapping[str, Any],
    *,
    series: str,
    action: str,
    model: str,
    tokens: str,
    **more: Any,
) -> dict[str, Any]:
    """Config of the champion step; it belongs to no run."""
    known = {"series": series, "action": action, "model": model, "tokens": tokens, **more}
    return _config("champion", parameters, request=dict(request), run_name="", **known)


def _sampling(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """How text is generated; in the tokenize step `sampling` is a percentage of contexts."""
    names = [field.name for field in dataclasses.fields(SamplingConfig)]  # type: ignore[arg-type]
    return {name: parameters[name] for name in names}


def _config(step: str, parameters: Mapping[str, Any], **known: Any) -> dict[str, Any]:
    """Every field of the step's config that the parameters have, under `known` ones; checked."""
    names = [field.name for field in dataclasses.fields(STEP_CONFIGS[step])]  # type: ignore[arg-type]
    values = {name: parameters[name] for name in names if name in parameters}
    values["volume"] = f"/{parameters['pvc']}"
    checked = load_step_config(step, json.dumps({**values, **known}))
    return dataclasses.asdict(checked)  # type: ignore[call-overload]
