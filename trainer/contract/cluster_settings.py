"""What a cluster needs to be told: names of its accounts, secrets, queues and limits.

FINETUNE_CLUSTER holds what is true of the cluster, as YAML or as the path of a YAML file;
a run's parameter `cluster` goes before it, key by key (cluster_request.py):

    namespace: research
    secrets: [finetune-hub, finetune-object-store]
    queue: gpus
"""

import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from trainer.contract.json_text import parse_json

VARIABLE = "FINETUNE_CLUSTER"
NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")  # of an object of Kubernetes
SECRET_VARIABLE = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD)$", re.IGNORECASE)
# The smallest value of each setting that is a number.
LEAST = {
    "nodes": 1,
    "backoff_limit": 0,
    "grace_seconds": 0,
    "deadline_seconds": 0,
    "pending_timeout_seconds": 0,
    "ttl_seconds": 0,
    "scratch_gib": 1,
    "light_cores": 1,
    "light_memory_gib": 1,
}


@dataclass(frozen=True, kw_only=True)
class ClusterSettings:
    """How steps run on a cluster."""

    # What pydantic asks of the parameter `cluster`.
    __pydantic_config__ = {"extra": "forbid", "strict": True, "use_attribute_docstrings": True}  # noqa: RUF012

    nodes: int = 1
    """Machines that train together, each with `trainer_gpus` GPUs."""
    namespace: str = ""
    """Where Jobs are made; empty: the kubeconfig's, or the orchestrator's own."""
    service_account: str = ""
    """Of the steps' pods, which get no token of it; empty: the namespace's default."""
    image_pull_secrets: list[str] = field(default_factory=list)
    """Names of Secrets with a registry's credentials."""
    secrets: list[str] = field(default_factory=list)
    """Names of Secrets whose keys become environment variables (HF_TOKEN, WANDB_API_KEY, ...)."""
    environment: dict[str, str] = field(default_factory=dict)
    """More environment variables; nothing secret, they can be read in the Job."""
    node_selector: dict[str, str] = field(default_factory=dict)
    """Labels that a node must have, besides the region and the GPU class."""
    tolerations: list[dict[str, Any]] = field(default_factory=list)
    """As in a pod's spec."""
    priority_class: str = ""
    """Name of a PriorityClass."""
    queue: str = ""
    """Name of a Kueue LocalQueue, which then decides when a Job may start."""
    device_resources: dict[str, int] = field(default_factory=dict)
    """More devices for each pod with a GPU. With {"rdma/ib": 1} and several nodes, NCCL uses
    InfiniBand; `environment` overrides its variables."""
    identity_audience: str = ""
    """Audience of a service account token for object storage (workload identity), as
    https://coreweave.com/iam; empty: no token. `environment` says who exchanges it:
    AWS_CONTAINER_CREDENTIALS_FULL_URI, or AWS_ROLE_ARN."""
    evicted_for_maintenance: bool = True
    """Let CoreWeave's node maintenance evict pods after their grace period: steps save and resume.
    Otherwise a node waits until its pods have ended."""
    backoff_limit: int = 6
    """How often Kubernetes restarts a step that crashed; evictions do not count."""
    grace_seconds: float = 120.0
    """Seconds from SIGTERM to the kill: a checkpoint has to fit; a log says where it does not."""
    deadline_seconds: int = 0
    """Longest time a Job may be active; 0: no limit."""
    pending_timeout_seconds: float = 0.0
    """Give up on a Job whose pod has not started after this; 0: never."""
    ttl_seconds: int = 7 * 24 * 3600
    """Seconds that a finished Job, and so its outcome, stays readable."""
    light_cores: int = 4
    """CPU cores of a step that only reads, hashes and encodes: plan, fetch, tokenize, deploy."""
    light_memory_gib: int = 8
    """Memory of such a step, in GiB."""
    scratch_gib: int = 32
    """Ephemeral storage for temporary files, in GiB."""
    user: int = 1000
    """User and group id of the steps' processes; files on the volume belong to them."""

    def __post_init__(self) -> None:
        problems = [*self._number_problems(), *self._name_problems()]
        problems += [
            f"environment can be read in the Job (got {variable}). "
            "Put it into a Secret, and name that in secrets."
            for variable in self.environment
            if SECRET_VARIABLE.search(variable)
        ]
        if problems:
            raise ValueError("\n".join(problems))

    def _number_problems(self) -> list[str]:
        numbers = {name: getattr(self, name) for name in LEAST}
        problems = [
            f"{name} is less than {LEAST[name]} (got {value})."
            for name, value in numbers.items()
            if not (math.isfinite(value) and value >= LEAST[name])
        ]
        if self.user <= 0:
            problems.append(f"user must not be root (got {self.user}). Steps need no privileges.")
        return problems + [
            f"device_resources has a number less than 1 (got {name}: {count}). Leave it out."
            for name, count in self.device_resources.items()
            if count < 1
        ]

    def _name_problems(self) -> list[str]:
        # What does not look like a name may be a key: it is not shown.
        return [
            f"{setting} is no name of an object of Kubernetes (got {len(value)} characters "
            "that are not all lower-case letters, digits, '-' and '.'). "
            "Keys belong into a Secret; name that here."
            for setting, value in self._names()
            if value and not NAME.fullmatch(value)
        ]

    def _names(self) -> list[tuple[str, str]]:
        """Every setting that names an object, with each of its names."""
        single = ("namespace", "service_account", "priority_class", "queue")
        several = ("image_pull_secrets", "secrets")
        named = [(setting, getattr(self, setting)) for setting in single]
        return named + [(setting, value) for setting in several for value in getattr(self, setting)]


def defaults() -> dict[str, Any]:
    """Every setting with its default."""
    return dataclasses.asdict(ClusterSettings())


def chosen(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that somebody chose: those that differ from their defaults.

    Prefect's forms send the default of every setting, so a default is not a choice.
    """
    usual = defaults()
    return {
        name: value
        for name, value in given.items()
        if value is not None and (name not in usual or value != usual[name])
    }


def cluster_file() -> dict[str, Any]:
    """The names and values in FINETUNE_CLUSTER, not validated; empty where it is not set.

    Raises:
        ValueError: It is no YAML mapping, or names a file that cannot be read.
    """
    text = os.environ.get(VARIABLE, "").strip()
    if _is_path(text):
        try:
            text = Path(text).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ValueError(f"{VARIABLE} names a file that cannot be read ({error}).") from error
    try:
        given = yaml.safe_load(text) if text.strip() else {}
        if isinstance(given, dict):
            # As JSON: a date is text, and a value that contains itself is refused.
            return parse_json(json.dumps(given, default=str))
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise ValueError(f"{VARIABLE} is not YAML ({error}).") from error
    raise ValueError(
        f"{VARIABLE} holds no names and values (got a {type(given).__name__}). "
        "Give YAML like 'queue: gpus', or the path of such a file."
    )


def _is_path(text: str) -> bool:
    if "\n" in text or text.startswith("{"):
        return False  # as a file's name it may be longer than the system allows
    return text.startswith("/") or text.endswith((".yaml", ".yml")) or Path(text or ".").is_file()
