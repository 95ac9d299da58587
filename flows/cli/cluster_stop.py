"""`finetune stop --backend kubernetes`: end what a run has running on a cluster."""

import os
import sys

from infra.backend import ContactError, PlaceError
from infra.choose_backend import BACKEND_VARIABLE, backend_from_environment
from trainer.contract.cluster_request import cluster_settings_over
from trainer.contract.errors import RequestError, StepError


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
        settings = cluster_settings_over({"namespace": namespace} if namespace else {})
        backend = backend_from_environment("", settings)
        stopped = backend.stop(
            pvc, run_name, on_line=lambda line: print(line, file=sys.stderr, flush=True)
        )
        served = backend.stop_service(pvc, run_name)
        return [*stopped, "service"] if served else stopped
    except ContactError as error:
        raise StepError(str(error)) from error
    except (PlaceError, ValueError) as error:
        raise RequestError(str(error)) from error
