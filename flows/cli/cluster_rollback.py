"""Roll a service back on a cluster, without Prefect: a Job finds the model, a Job checks it."""

import uuid
from collections.abc import Callable

from infra.kubernetes_backend.jobs import KubernetesBackend
from tasks.cluster_deployment import deploy_on_cluster
from tasks.following import follow_step
from tasks.specs import step_spec
from trainer.contract.parameters import Parameters, cluster_settings


def rollback_on_cluster(parameters: Parameters, say: Callable[[str], None]) -> str:
    """Serve what served before; a sentence about what serves then.

    Raises:
        RequestError: There is no earlier model, or it is gone.
        StepError: Its server did not pass; what served serves on.
    """
    backend = KubernetesBackend(cluster_settings(parameters))
    values, attempt = parameters.model_dump(), uuid.uuid4().hex
    outcome = deploy_on_cluster(
        values,
        backend.serving(parameters.serving.kind),
        lambda config: follow_step(
            backend, step_spec(values, "deploy", config, attempt=attempt), []
        ),
        say,
        rollback=True,
    )
    return f"{outcome.result['model']} serves at {outcome.result['url']}"
