"""InferenceServices as KServe's own CustomResourceDefinition has them, unknown fields refused."""

import copy
import functools
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from tests.kubernetes_double.standard_serving import canary_problems

CRD = Path(__file__).with_name("inferenceservice-crd.yaml")
KEEPS = "x-kubernetes-preserve-unknown-fields"


@functools.cache
def _validator() -> jsonschema.Draft202012Validator:
    (version,) = yaml.safe_load(CRD.read_text())["spec"]["versions"]
    return jsonschema.Draft202012Validator(_strict(version["schema"]["openAPIV3Schema"]))


def _strict(schema: Any) -> Any:
    """The same schema, by which a field that it does not have is an error."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _strict(part) for key, part in copy.deepcopy(schema).items()}
    if isinstance(made.get("properties"), dict) and not made.get(KEEPS):
        made.setdefault("additionalProperties", False)
    return made


def problems(given: dict[str, Any]) -> list[str]:
    """What is wrong with an InferenceService: `spec.predictor.minReplicas: 'x' is not ...`."""
    if refused := canary_problems(given):
        return refused
    found = sorted(_validator().iter_errors(given), key=lambda error: list(map(str, error.path)))
    return [".".join(map(str, error.absolute_path)) + f": {error.message}" for error in found]
