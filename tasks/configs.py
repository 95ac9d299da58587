"""From the flow's parameters to each step's config: plain data in, plain data out."""

import dataclasses
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from trainer.contract.step_configs import STEP_CONFIGS, SamplingConfig, load_step_config

# What each step reads on the volume, by the names that earlier steps' outcomes give its digest.
READS = {
    "tokenize": ("dataset", "tokenizer", "template"),
    "finetune": ("model", "tokenizer", "prompt_file"),
    "evaluate": ("model", "prompt_file", "final", "admission"),
    "deploy": ("final", "admission", "report", "services"),
    "champion": ("model", "final", "admission", "report", "champion"),
}
Digests = Mapping[str, str]


def inputs_of(step: str, digests: Digests) -> dict[str, str]:
    """Those of `digests` that name what the step reads."""
    return {name: digests[name] for name in READS[step] if name in digests}


def fetch_config(
    parameters: Mapping[str, Any], request: Mapping[str, Any], *, listing: str = ""
) -> dict[str, Any]:
    """Config of the fetch step, and of the plan step; `request` is what defines the run."""
    return _config("fetch", parameters, request=dict(request), listing=listing)


def tokenize_config(
    parameters: Mapping[str, Any],
    *,
    model: str,
    tokenizer: str,
    listing: str = "",
    digests: Digests = MappingProxyType({}),
) -> dict[str, Any]:
    """Config of the tokenize step, for the folders that fetch found or made."""
    return _config(
        "tokenize",
        parameters,
        model=model,
        tokenizer=tokenizer,
        listing=listing,
        inputs=inputs_of("tokenize", digests),
    )


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
    digests: Digests = MappingProxyType({}),
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
        inputs=inputs_of("finetune", digests),
    )


def evaluate_config(
    parameters: Mapping[str, Any],
    *,
    model: str,
    tokens: str,
    digests: Digests = MappingProxyType({}),
) -> dict[str, Any]:
    """Config of the evaluate step, for the final model that finetune made."""
    return _config(
        "evaluate",
        parameters,
        model=model,
        tokens=tokens,
        sampling=_sampling(parameters),
        inputs=inputs_of("evaluate", digests),
    )


def deploy_config(
    parameters: Mapping[str, Any], *, digests: Digests = MappingProxyType({}), **known: Any
) -> dict[str, Any]:
    """Config of the deploy step, on a cluster."""
    values = {name: value for name, value in parameters.items() if name != "serving"}
    return _config("deploy", values, inputs=inputs_of("deploy", digests), **known)


def champion_config(
    parameters: Mapping[str, Any],
    request: Mapping[str, Any],
    *,
    series: str,
    action: str,
    model: str,
    tokens: str,
    digests: Digests = MappingProxyType({}),
    **more: Any,
) -> dict[str, Any]:
    """Config of the champion step; it belongs to no run."""
    known = {"series": series, "action": action, "model": model, "tokens": tokens, **more}
    known["inputs"] = inputs_of("champion", digests)
    return _config("champion", parameters, request=dict(request), run_name="", **known)


def again_config(parameters: Mapping[str, Any], **known: Any) -> dict[str, Any]:
    """Config of the step that repeats a run; it leaves no outcome in the run's folder."""
    return _config("again", parameters, run_name="", **known)


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
