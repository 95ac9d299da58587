"""What infra/cluster puts into a namespace, as `kubectl apply -k` does."""

import copy
from pathlib import Path

import yaml

from flows.cli.prefect_server import answers, free_port
from tests.kubernetes_double.cluster import Cluster

FOLDER = Path(__file__).parents[2] / "infra/cluster"
LISTED = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]
MANIFESTS = [made for name in LISTED for made in yaml.safe_load_all((FOLDER / name).read_text())]
ORCHESTRATOR, WORKER = "finetune-orchestrator", "finetune-worker"  # service accounts
SERVER_CLAIM = "prefect-server"
KINDS = {"Service": "services", "Deployment": "deployments"}


def applied(cluster: Cluster) -> str:
    """Start Prefect's server and worker as pods; the address that port-forward gives the API."""
    # The worker's own health page would listen at one port for all clusters of this machine.
    cluster.node.environment |= {"PREFECT_WORKER_WEBSERVER_PORT": str(free_port())}
    host = f"{SERVER_CLAIM}:4200"
    for kind, plural in KINDS.items():
        for made in MANIFESTS:
            if made["kind"] == kind:
                cluster.create(plural, copy.deepcopy(made))
        cluster.wait_for(lambda: host in cluster.node.hosts)
    url = f"http://{cluster.node.hosts[host]}/api"
    cluster.wait_for(lambda: answers(url))
    return url
