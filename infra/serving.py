"""What is to be served on a cluster: plain data, the same for every kind of service."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from infra.backend import Line

PORT = 8080
MODEL_FOLDER = "/mnt/models"  # where KServe puts what a storage URI names


class ServingError(Exception):
    """A server did not become ready, or its place refuses it; in plain words."""


@dataclass(frozen=True, kw_only=True)
class ServingSpec:
    """One revision of a run's service."""

    run_name: str
    volume: str  # the parameter `pvc`
    model: str  # the model's folder on the volume
    model_digest: str
    revision: int
    image: str
    config: Mapping[str, Any] = field(default_factory=dict)  # more of the serve step's
    figures: Mapping[str, float] = field(default_factory=dict)  # its validation loss
    region: str = ""
    gpu: str = ""  # GPU class as the cluster labels it
    gpus: int = 1
    cores: int = 4
    max_cores: int = 12
    memory_gib: int = 8
    max_memory_gib: int = 60
    min_replicas: int = 0
    max_replicas: int = 1
    retention_minutes: int = 20
    ready_seconds: float = 1800.0

    @property
    def name(self) -> str:
        """The service's name, the same for all revisions."""
        return self.name_of(self.run_name)

    @staticmethod
    def name_of(run_name: str) -> str:
        return f"inference-{run_name}"

    def serves_as(self, other: "ServingSpec") -> bool:
        """Whether both give the same servers: only their numbers may differ."""
        return self._content() == other._content()

    def _content(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if k not in ("revision", "figures")}

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "ServingSpec":
        return cls(**json.loads(text))


def server_config(spec: ServingSpec) -> str:
    """The serve step's configuration, as the server's command line carries it."""
    config = {
        **spec.config,
        "volume": MODEL_FOLDER,
        "model": ".",
        "model_digest": spec.model_digest,
        "host": "0.0.0.0",
        "port": PORT,
        # Knative decides on the port and tells it so.
        "port_variable": "PORT",
    }
    return json.dumps(config, sort_keys=True)


class ServingPlace(Protocol):
    """Where services are kept, each under its run's name, revision after revision."""

    def serving(self, spec: ServingSpec) -> ServingSpec | None:
        """The revision that the service of that name was last asked for."""

    def start(self, spec: ServingSpec, before: ServingSpec | None, on_line: Line) -> str:
        """Make the revision beside `before` and wait until it is ready; its own address."""

    def promote(self, spec: ServingSpec, on_line: Line) -> str:
        """Send clients to the revision, and remove all others; return the service's address."""

    def withdraw(self, spec: ServingSpec, before: ServingSpec | None, on_line: Line) -> None:
        """Remove the revision; `before` goes on, and without one the service goes."""

    def remove(self, run_name: str) -> bool:
        """Remove the run's service; whether there was one."""
