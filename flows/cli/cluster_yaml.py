"""`finetune render`: the Kubernetes objects of a run's steps as YAML. Asks nobody, touches nothing.

Some of a step's config is what the steps before it make. The model's folder follows from
its name; the store of tokens is named by the dataset's content, which only the tokenize
step reads: until it is given, the manifests that need it hold a name to be replaced.
"""

import uuid
from collections.abc import Sequence
from pathlib import Path

from infra.backend import StepSpec
from infra.kubernetes_backend import manifests_serving
from infra.kubernetes_backend.manifests_job import Object, as_yaml, render
from tasks import configs
from tasks.specs import step_spec
from trainer.contract.cluster_settings import ClusterSettings
from trainer.contract.parameters import Parameters, cluster_settings
from trainer.contract.volume import path_on_volume

STEPS = ("fetch", "tokenize", "finetune", "evaluate")
WITH_DEPLOY = (*STEPS, "deploy")
UNKNOWN_STORE = "tokens/STORE"


def render_request(
    parameters: Parameters,
    home: Path,
    steps: Sequence[str] = WITH_DEPLOY,
    tokens: str = UNKNOWN_STORE,
) -> str:
    """YAML for `kubectl apply`: what the flow would create, each step after the one before it.

    Args:
        home: Where a copy of the volume may be, to tell its folders from names of the hub.
        tokens: The store's folder, as the tokenize step says it.
    Raises:
        RequestError: FINETUNE_CLUSTER is wrong.
    """
    settings = cluster_settings(parameters)
    texts, before = [], ""
    for spec in request_specs(parameters, settings, home / parameters.pvc, tokens):
        if spec.step in steps and not parameters.inference_only:
            head = f"# {spec.step}" + (f": once {before} is Complete" if before else "")
            texts.append(f"{head}\n{render([spec], settings)}")
        before = spec.step
    if "deploy" in steps and (parameters.run_inference or parameters.inference_only):
        head = "# deploy" + ("" if parameters.inference_only else f": once {before} is Complete")
        kind = parameters.serving.kind or "kserve"
        texts.append(f"{head}\n{as_yaml(service_objects(parameters, settings, kind))}")
    return "---\n".join(texts)


def service_objects(parameters: Parameters, settings: ClusterSettings, kind: str) -> list[Object]:
    """What serves the run's final model, as its first revision; `kind` as `serving` has it.

    From `final/` itself: where the deploy step keeps a model is named by a digest that only
    the volume knows. So of these alone no server starts once the run starts over.
    """
    from tasks.cluster_deployment import serving_spec  # loads Prefect

    found = {"model": f"{parameters.run_name}/final", "model_digest": "", "revision": 1}
    spec = serving_spec(parameters.model_dump(), {**found, "loss": None})
    if kind == "deployment":
        named = manifests_serving.service(spec, settings, spec.name)
        return [manifests_serving.deployment(spec, settings), named]
    return [manifests_serving.inference_service(spec, settings)]


def request_specs(
    parameters: Parameters, settings: ClusterSettings, volume: Path, tokens: str
) -> list[StepSpec]:
    """What the backend is told of each step, in their order."""
    values, request = parameters.model_dump(), parameters.request
    # One who asks starts over once, however often the Job starts a pod.
    attempt = f"render-{uuid.uuid4().hex[:16]}" if parameters.no_resume else ""
    model = _folder(volume, "model", parameters.model)
    tokenizer = _folder(volume, "tokenizer", parameters.tokenizer) if parameters.tokenizer else ""
    made = {
        "fetch": configs.fetch_config(values, request),
        "tokenize": configs.tokenize_config(values, model=model, tokenizer=tokenizer),
        "finetune": configs.finetune_config(
            values,
            request,
            model=model,
            tokenizer=tokenizer,
            tokens=tokens,
            nodes=settings.nodes,
            grace_seconds=settings.grace_seconds,
            attempt=attempt,
            earlier_outcomes=[],
        ),
        "evaluate": configs.evaluate_config(values, model=model, tokens=tokens),
    }
    return [
        step_spec(values, step, made[step], attempt=attempt, nodes=settings.nodes) for step in STEPS
    ]


def _folder(volume: Path, parameter: str, name: str) -> str:
    """Where the fetch step puts, or finds, the model of that name."""
    from trainer.fetch.hub import parse_hub_id

    hub_id = parse_hub_id(name)
    if hub_id is None or name.startswith("models/"):
        return name
    if path_on_volume(volume, parameter, name).is_dir():
        return name
    return hub_id.folder(tokenizer_only=parameter == "tokenizer")
