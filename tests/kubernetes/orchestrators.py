"""Starts orchestrators quickly: loads the backend once, then forks one for each order.

Reads lines of JSON: {"action": "run" | "cancel", "step": {...}, "result": path}.
Writes `started PID` and `ended PID` for each. An orchestrator that is not killed
leaves its StepEnd as JSON in `result`.
"""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

from infra.backend import StepSpec
from infra.kubernetes_backend.jobs import KubernetesBackend


def orchestrate(order: dict[str, Any]) -> None:
    backend = KubernetesBackend(look_seconds=0.05, volumes=Path(order["volumes"]))
    step = StepSpec(**order["step"])
    if order["action"] == "cancel":
        backend.cancel(step)
        end = {}
    else:
        backend.submit(step)
        end = dataclasses.asdict(backend.wait(step, lambda line: None))
    Path(order["result"]).write_text(json.dumps(end))


for line in sys.stdin:
    child = os.fork()
    if not child:
        try:
            orchestrate(json.loads(line))
        finally:
            os._exit(0)
    print("started", child, flush=True)
    os.waitpid(child, 0)
    print("ended", child, flush=True)
