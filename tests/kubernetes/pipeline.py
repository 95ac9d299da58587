"""The steps of a small run, one after the other as the flow does them, without Prefect."""

from pathlib import Path
from typing import Any

from infra.backend import Backend, Resources, StepSpec
from infra.kubernetes_backend.jobs import KubernetesBackend
from tasks import configs
from tasks.following import Watcher, follow_step
from tests.kubernetes.conftest import CLAIM, LOOK_SECONDS
from trainer.contract.outcome import Outcome
from trainer.contract.parameters import Parameters
from trainer.contract.work_key import work_key

STEPS = ["fetch", "tokenize", "finetune"]
REQUEST = Parameters(
    run_name="run",
    model="models/tiny",
    context=64,
    batch_size=4,
    gradients=1,
    epochs=4,
    save_steps=10,
    learn_rate=1e-3,
    prompt_tokens=4,
    prompt_samples=1,
)


def run_steps(backend: Backend, watchers: list[Watcher]) -> dict[str, Outcome]:
    """fetch, tokenize and finetune."""
    values, outcomes = REQUEST.model_dump(), {}

    def follow(step: str, config: dict[str, Any]) -> dict[str, Any]:
        outcomes[step] = follow_step(backend, spec_of(step, config), watchers)
        return outcomes[step].result

    fetched = follow("fetch", configs.fetch_config(values, REQUEST.request))
    folders = {"model": fetched["model"], "tokenizer": fetched["tokenizer"]}
    tokens = follow("tokenize", configs.tokenize_config(values, **folders))["store"]
    asked = {"attempt": "flow-run-1", "earlier_outcomes": []}
    follow(
        "finetune",
        configs.finetune_config(values, REQUEST.request, **folders, tokens=tokens, **asked),
    )
    return outcomes


def orchestrate(volumes: str) -> dict[str, str]:
    """The same as Jobs; how each step ended."""
    backend = KubernetesBackend(look_seconds=LOOK_SECONDS, volumes=Path(volumes))
    return {step: outcome.status for step, outcome in run_steps(backend, []).items()}


def spec_of(step: str, config: dict[str, Any]) -> StepSpec:
    """A step of the run as the backend is told of it."""
    return StepSpec(
        step=step,
        run_name="run",
        volume=CLAIM,
        config=config,
        key=work_key(step, config),
        attempt="flow-run-1",
        resources=Resources(gpu="A40", gpus=1) if step == "finetune" else Resources(),
        image="finetune-steps:0.2.0",
        region="US-EAST-01",
    )
