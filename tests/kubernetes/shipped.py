"""What infra/cluster puts into a namespace, as `kubectl apply -k` does."""

from pathlib import Path

import yaml

FOLDER = Path(__file__).parents[2] / "infra/cluster"
LISTED = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["resources"]
MANIFESTS = [made for name in LISTED for made in yaml.safe_load_all((FOLDER / name).read_text())]
ORCHESTRATOR, WORKER = "finetune-orchestrator", "finetune-worker"  # service accounts
