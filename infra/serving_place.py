"""What is to be served on a cluster: plain data, the same for every kind of service."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from trainer.contract.json_text import parse_json

Line = Callable[[str], None]

PORT = 8080
LONGEST_NAME = 63 - max(len("latest--predictor"), len("isvc.-a-predictor"))
DIGITS_OF_DIGEST = 6
MODEL_FOLDER = "/mnt/models"  # where KServe puts what a storage URI names
API_KEY_VARIABLE = "FINETUNE_API_KEY"  # the Secret's key, and the variable that a server reads


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
    api_key: str = ""  # name of the Secret with the key that clients must send

    @property
    def name(self) -> str:
        """The service's name, the same for all revisions."""
        return self.name_of(self.run_name)

    @staticmethod
    def name_of(run_name: str) -> str:
        """The service's name; a long run's is cut, so that KServe's names of it suit DNS.

        Those are `latest-{name}-predictor` with Knative, and the label
        `app: isvc.{name}-a-predictor` without it: at most 63 characters.
        """
        name = f"inference-{run_name}"
        if len(name) <= LONGEST_NAME:
            return name
        digest = hashlib.sha256(run_name.encode()).hexdigest()[:DIGITS_OF_DIGEST]
        return f"{name[: LONGEST_NAME - DIGITS_OF_DIGEST - 1].rstrip('-')}-{digest}"

    def serves_as(self, other: "ServingSpec") -> bool:
        """Whether both give the same servers: only their numbers may differ."""
        return self._content() == other._content()

    def _content(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if k not in ("revision", "figures")}

    def to_json(self) -> str:
        # Without a key it is what versions wrote that knew of none: a service stays as it is.
        fields = {k: v for k, v in asdict(self).items() if k != "api_key" or v}
        return json.dumps(fields, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "ServingSpec | None":
        """What `to_json` wrote; None where it is something else: another one edited it."""
        try:
            return cls(**parse_json(text))
        except (ValueError, TypeError, RecursionError):
            return None


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
    if spec.api_key:
        config["api_key_variable"] = API_KEY_VARIABLE
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
        """Remove the revision; `before` continues, and without one the service goes."""

    def remove(self, run_name: str) -> bool:
        """Remove the run's service; whether there was one."""
