"""A pull step of prefect.yaml: the folder from which a flow run finds its volume."""

import os
from pathlib import Path

from infra.choose_backend import BACKEND_VARIABLE


def enter(deployed_from: str) -> dict[str, str]:
    """Go to the folder of the deploy, or stay in an orchestrator image's own.

    A process worker starts each flow run in a temporary folder; the volumes are where
    `prefect deploy` was run. An orchestrator's pod has them mounted.

    Raises:
        FileNotFoundError: The worker's machine has no such folder.
    """
    if os.environ.get(BACKEND_VARIABLE) == "kubernetes":
        return {"directory": os.getcwd()}
    if not Path(deployed_from).is_dir():
        raise FileNotFoundError(
            f"The folder that this was deployed from is not on the worker's machine (got "
            f"{deployed_from}). Run `prefect deploy` there, in the folder that holds the volumes."
        )
    os.chdir(deployed_from)
    return {"directory": deployed_from}
