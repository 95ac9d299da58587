"""What an orchestrator does with one step; see orchestrators.py."""

import dataclasses
from pathlib import Path
from typing import Any

from infra.backend import StepSpec
from infra.kubernetes_backend.jobs import KubernetesBackend


def run(step: dict[str, Any], volumes: str) -> dict[str, Any]:
    """Start or adopt the step, follow it, and return how it ended."""
    backend = KubernetesBackend(look_seconds=0.05, volumes=Path(volumes))
    spec = StepSpec(**step)
    backend.submit(spec)
    return dataclasses.asdict(backend.wait(spec, lambda line: None))


def cancel(step: dict[str, Any], volumes: str) -> dict[str, Any]:
    """Stop the step."""
    KubernetesBackend(look_seconds=0.05, volumes=Path(volumes)).cancel(StepSpec(**step))
    return {}
