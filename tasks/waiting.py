"""The event by which a Prefect server learns that a step has waited for long to start.

`finetune automations` makes an automation that sends a notification for it.
"""

from typing import Any

from prefect.events import emit_event
from prefect.runtime import flow_run

EVENT = "finetune.step.waiting"
RESOURCE = "finetune.step."


def tell_of_waiting(run_name: str, step: str, message: str) -> None:
    """Emit the event for the flow run of this context; nothing where no server takes it."""
    flow_run_id = str(flow_run.get_id())
    emit_event(**waiting_event(run_name, step, message, flow_run_id))


def waiting_event(run_name: str, step: str, message: str, flow_run_id: str) -> dict[str, Any]:
    """The event, as `emit_event` takes it."""
    return {
        "event": EVENT,
        "resource": {
            "prefect.resource.id": f"{RESOURCE}{run_name}.{step}",
            "prefect.resource.name": f"the {step} step of {run_name}",
        },
        "related": [
            {
                "prefect.resource.id": f"prefect.flow-run.{flow_run_id}",
                "prefect.resource.role": "flow-run",
                "prefect.resource.name": run_name,
            }
        ],
        "payload": {"run_name": run_name, "step": step, "message": message},
    }
