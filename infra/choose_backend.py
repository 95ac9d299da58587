"""Where steps run, as the environment says: the same flow is used in every place.

FINETUNE_BACKEND   local (default) or kubernetes
FINETUNE_HOME      folder that holds the volumes of local runs; default: this folder
FINETUNE_CLUSTER   settings of the cluster, see trainer/contract/cluster_settings.py; the parameter
                   `cluster` goes before it
"""

import os
from pathlib import Path

from infra.backend import Backend
from infra.local.processes import LocalBackend
from trainer.contract.cluster_settings import ClusterSettings

HOME_VARIABLE = "FINETUNE_HOME"
BACKEND_VARIABLE = "FINETUNE_BACKEND"


def home_from_environment() -> Path:
    """The folder that holds the volumes of local runs."""
    return Path(os.environ.get(HOME_VARIABLE) or ".").resolve()


def backend_from_environment(logs: str, settings: ClusterSettings) -> Backend:
    """The backend that this process was told to use.

    Args:
        logs: Folder on the volume for full logs.
        settings: Of the cluster, where that is the place.
    Raises:
        ValueError: FINETUNE_BACKEND names none.
    """
    name = os.environ.get(BACKEND_VARIABLE) or "local"
    if name == "local":
        return LocalBackend(home_from_environment(), logs)
    if name == "kubernetes":
        # Loads the Kubernetes client, which a local run need not have installed.
        from infra.kubernetes_backend.jobs import KubernetesBackend

        return KubernetesBackend(settings)
    raise ValueError(f"{BACKEND_VARIABLE} is neither local nor kubernetes (got {name!r}).")
