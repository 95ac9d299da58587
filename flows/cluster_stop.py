"""`finetune stop --backend kubernetes`: end what a run has under way on a cluster."""

import os
import sys

from infra.backend import ContactError, PlaceError
from infra.manifests_settings import settings_from_environment
from infra.place import BACKEND_VARIABLE, backend_from_environment
from trainer.errors import RequestError, StepError


def stop_on_cluster(pvc: str, run_name: str, namespace: str = "") -> list[str]:
    """Delete the run's Jobs, letting their steps save, and its service; what was stopped.

    Args:
        namespace: Empty: that of FINETUNE_CLUSTER, else the kubeconfig's.
    Raises:
        RequestError: There is no cluster, it refuses, or FINETUNE_CLUSTER is wrong.
        StepError: It does not answer.
    """
    os.environ[BACKEND_VARIABLE] = "kubernetes"
    try:
        settings = settings_from_environment({"namespace": namespace} if namespace else None)
        backend = backend_from_environment("", settings)
        stopped = backend.stop(
            pvc, run_name, on_line=lambda line: print(line, file=sys.stderr, flush=True)
        )
        served = backend.serving("").remove(run_name)  # type: ignore[attr-defined]
        return [*stopped, "service"] if served else stopped
    except ContactError as error:
        raise StepError(str(error)) from error
    except (PlaceError, ValueError) as error:
        raise RequestError(str(error)) from error
