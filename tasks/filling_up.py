"""The event by which a Prefect server learns that the volume of a series will soon be full.

`finetune automations` makes an automation that sends a notification for it.
"""

from collections.abc import Mapping
from typing import Any

from prefect.events import emit_event
from prefect.runtime import flow_run

from trainer.retention.space import WARNED_NIGHTS

EVENT = "finetune.volume.filling"
RESOURCE = "finetune.series."


def filling_up(series: str, room: Mapping[str, Any]) -> str:
    """A sentence where so few nights fit that somebody should know, and the event; else ''."""
    nights = room.get("nights_until_full")
    if nights is None or nights > WARNED_NIGHTS:
        return ""
    when = f"in {nights} nights like the last ones" if nights else "before the next night is done"
    message = (
        f"the volume is full {when}: `finetune prune --runs` says what can be removed, "
        "or give it more space"
    )
    emit_event(**filling_event(series, nights, message, str(flow_run.get_id())))
    return message


def filling_event(series: str, nights: int, message: str, flow_run_id: str) -> dict[str, Any]:
    """The event, as `emit_event` takes it."""
    return {
        "event": EVENT,
        "resource": {
            "prefect.resource.id": f"{RESOURCE}{series}",
            "prefect.resource.name": f"the volume of {series}",
        },
        "related": [
            {
                "prefect.resource.id": f"prefect.flow-run.{flow_run_id}",
                "prefect.resource.role": "flow-run",
                "prefect.resource.name": series,
            }
        ],
        "payload": {"series": series, "nights": nights, "message": message},
    }
