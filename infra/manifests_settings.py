"""What a cluster needs to be told: names of its accounts, secrets, queues and limits.

FINETUNE_CLUSTER holds what is true of the cluster, as YAML or as the path of a YAML file;
a run's parameter `cluster` goes before it, key by key:

    namespace: research
    secrets: [finetune-hub, finetune-object-store]
    queue: gpus
"""

import dataclasses
import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

VARIABLE = "FINETUNE_CLUSTER"
NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")  # of an object of Kubernetes
SECRET_VARIABLE = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD)$", re.IGNORECASE)


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
    """More devices for each pod with a GPU, for instance {"rdma/ib": 1} for InfiniBand."""
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
    scratch_gib: int = 32
    """Ephemeral storage for temporary files, in GiB."""
    user: int = 1000
    """User and group id of the steps' processes; files on the volume belong to them."""

    def __post_init__(self) -> None:
        if self.nodes < 1:
            raise ValueError(f"nodes is less than 1 (got {self.nodes}).")
        if self.backoff_limit < 0:
            raise ValueError(f"backoff_limit is negative (got {self.backoff_limit}).")
        if self.user <= 0:
            raise ValueError(f"user must not be root (got {self.user}). Steps need no privileges.")
        for setting, value in self._names():
            if value and not NAME.fullmatch(value):
                # What looks like no name may be a key: it is not shown.
                raise ValueError(
                    f"{setting} is no name of an object of Kubernetes (got {len(value)} characters "
                    "that are not all lower-case letters, digits, '-' and '.'). "
                    "Keys belong into a Secret; name that here."
                )
        for variable in self.environment:
            if SECRET_VARIABLE.search(variable):
                raise ValueError(
                    f"environment can be read in the Job (got {variable}). "
                    "Put it into a Secret, and name that in secrets."
                )

    def _names(self) -> list[tuple[str, str]]:
        """Every setting that names an object, with each of its names."""
        single = ("namespace", "service_account", "priority_class", "queue")
        several = ("image_pull_secrets", "secrets")
        named = [(setting, getattr(self, setting)) for setting in single]
        return named + [(setting, value) for setting in several for value in getattr(self, setting)]


def settings_from_environment(over: Mapping[str, Any] | None = None) -> ClusterSettings:
    """What FINETUNE_CLUSTER says, with `over` before it; without either the defaults.

    Raises:
        ValueError: It is no YAML mapping, or has a key that is not a setting.
    """
    text = os.environ.get(VARIABLE, "")
    if text and "\n" not in text and Path(text).is_file():
        text = Path(text).read_text(encoding="utf-8")
    try:
        given = yaml.safe_load(text) if text.strip() else {}
    except yaml.YAMLError as error:
        raise ValueError(f"{VARIABLE} is not YAML ({error}).") from error
    if not isinstance(given, dict):
        raise ValueError(
            f"{VARIABLE} holds no names and values (got {given!r}). "
            "Give YAML like 'queue: gpus', or the path of such a file."
        )
    return settings_of({**given, **(over or {})})


def settings_of(given: Mapping[str, Any]) -> ClusterSettings:
    """Settings from a plain mapping.

    Raises:
        ValueError: Naming every key that is not a setting.
    """
    known = [f.name for f in dataclasses.fields(ClusterSettings)]
    problems = []
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            problems.append(f"{name} is not a setting of a cluster.{hint}")
    if problems:
        raise ValueError("\n".join(problems))
    return ClusterSettings(**given)
