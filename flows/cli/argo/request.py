"""Read a request of the reference's Argo workflow as parameters of this pipeline.

A file of `argo submit --parameter-file`, or a Workflow, WorkflowTemplate or
CronWorkflow as `argo get -o yaml` and `kubectl get -o yaml` print it. What is left
out there was the reference's default, which stands here where it differs from ours.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from trainer.contract.errors import RequestError
from trainer.contract.parameters import Parameters
from trainer.contract.upstream_names import ONE_IMAGE, OTHER_IMAGES, hint_for
from trainer.contract.validation import load_parameters

# Source: finetuner-workflow/finetune-workflow.yaml of coreweave/kubernetes-cloud. It trains
# on all text whatever train_ratio says.
DEFAULTS_THERE = {"model": "EleutherAI/pythia-2.8b-deduped", "train_ratio": "1.0"}
# The tokenizers that the reference's own tokenizer has built in, and where the hub has them.
BUILT_IN_TOKENIZERS = {"gpt2": "openai-community/gpt2", "pile": "EleutherAI/gpt-neox-20b"}
GONE_REGIONS = ("ORD1", "LGA1", "LAS1", "RNO2")  # CoreWeave's labels of its old regions
# What the upstream workflow always does, and no parameter of it says.
# Source: finetuner-workflow/finetuner/finetuner.py and its ds_config.json (WarmupLR, whose rise is
# logarithmic by default) of coreweave/kubernetes-cloud.
RECIPE = {"schedule": {"kind": "constant"}, "optimizer": {"weight_decay": 0.01}}
RECIPE_NOTE = (
    "set as the upstream workflow always trains: optimizer.weight_decay 0.01, and schedule.kind "
    "constant: the rate stays after the warm-up. Only its rise differs: logarithmic there, a line "
    "here"
)
KINDS = ("Workflow", "WorkflowTemplate", "ClusterWorkflowTemplate", "CronWorkflow")
SECRET_COMMAND = "kubectl create secret generic wandb --from-literal=WANDB_API_KEY=..."


@dataclass
class Imported:
    """The same request here, and what of it is another way or has no counterpart."""

    parameters: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_yaml(self) -> str:
        """A file for `--params`; the notes are its comments."""
        notes = "".join(f"# {note}\n" for note in self.notes)
        return notes + yaml.safe_dump(self.parameters, sort_keys=False, allow_unicode=True)


def import_argo(text: str, name: str) -> Imported:
    """The request in `text`, which `name` calls the file.

    Raises:
        RequestError: It is neither kind of file, or asks for what can't be asked here.
    """
    given = _given(text, name)
    imported = Imported()
    for parameter, value in {**DEFAULTS_THERE, **given}.items():
        _take(imported, parameter, value, left_out=parameter not in given)
    checked = load_parameters(Parameters, {"run_name": "unnamed", **imported.parameters})
    if "run_name" not in given:
        imported.notes.append("run_name is required, and the file has none: give it with -p")
    imported.notes.append(RECIPE_NOTE)
    values = checked.model_dump(mode="json")
    imported.parameters = {
        known: values[known] for known in Parameters.model_fields if known in imported.parameters
    } | RECIPE
    return imported


def _take(imported: Imported, parameter: str, value: str, *, left_out: bool) -> None:
    """Keep one parameter in our words, or note why it is left out."""
    note = imported.notes.append
    if OTHER_IMAGES.match(parameter):
        note(f"{parameter} is left out ({value}). {ONE_IMAGE}")
    elif parameter == "wandb_key":
        # In the reference it is the key itself, which belongs in no file.
        if value:
            note("wandb_key is left out: it was the key itself, and is a Secret's name here.")
            note(f"  Make one and name it with -p wandb_key=wandb: {SECRET_COMMAND}")
    elif parameter == "retokenize":
        if value == "true":
            note("retokenize is left out: tokens are found by content here, so old ones never pass")
    elif parameter == "region" and value in GONE_REGIONS:
        note(f"region is left out: {value} is no region of CoreWeave today. Nodes of any will do")
    elif parameter not in Parameters.model_fields:
        if value not in ("", "false"):
            shown = "a value that is not shown" if parameter.endswith("_key") else value
            hint = hint_for(parameter, Parameters.model_fields)
            note(f"{parameter} has no counterpart ({shown}). {hint}".rstrip())
    else:
        imported.parameters[parameter] = _in_our_words(imported, parameter, value)
        if left_out:
            note(f"{parameter} was left out: {value} is the reference's default")


def _in_our_words(imported: Imported, parameter: str, value: str) -> str:
    if parameter == "tokenizer" and value in BUILT_IN_TOKENIZERS:
        imported.notes.append(f"tokenizer was {value}, which the reference has built in")
        return BUILT_IN_TOKENIZERS[value]
    if parameter == "run_name":
        label = re.sub(r"[^a-z0-9]+", "-", value.lower()).strip("-")[:40].rstrip("-")
        if label != value:
            imported.notes.append(f"run_name was {value}, which is no DNS label")
        return label
    return value


# --- reading ----------------------------------------------------------------------------


def _given(text: str, name: str) -> dict[str, str]:
    """Names and values as the file has them, all as the text that Argo makes of them."""
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RequestError(f"FILE {name} is not YAML or JSON ({error}).") from error
    if not isinstance(found, dict):
        raise RequestError(f"FILE {name} holds no names and values. It is an Argo parameter file.")
    if "kind" not in found:
        return {str(parameter): _as_text(value) for parameter, value in found.items()}
    return _of_workflow(found, name)


def _of_workflow(found: Mapping[str, Any], name: str) -> dict[str, str]:
    if found["kind"] == "List" and len(found.get("items") or []) == 1:
        found = found["items"][0]
    if found["kind"] not in KINDS:
        raise RequestError(
            f"FILE {name} is no Workflow (got kind {found['kind']!r}). "
            f"It is one of {', '.join(KINDS)}, or an Argo parameter file."
        )
    spec = found.get("spec") or {}
    listed = ((spec.get("workflowSpec") or spec).get("arguments") or {}).get("parameters")
    if not listed:
        raise RequestError(
            f"FILE {name} has no spec.arguments.parameters. Print the Workflow as it was "
            "submitted: argo get NAME -o yaml"
        )
    # One that a Workflow only declares, as run_name in the template, is not given.
    known = (p if "value" in p else {**p, "value": p.get("default")} for p in listed)
    return {p["name"]: _as_text(p["value"]) for p in known if p["value"] is not None}


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)
