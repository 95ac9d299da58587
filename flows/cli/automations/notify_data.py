"""`finetune notify-data`: tell a Prefect server that a dataset changed.

Deployments with a trigger on the event start then (prefect.yaml, retrain/nightly).
"""

from fnmatch import fnmatch
from typing import Any

from trainer.contract.errors import RequestError, StepError
from trainer.contract.parameters import Parameters

EVENT = "dataset.updated"
RESOURCE = "finetune.dataset."
SEND_SECONDS = 30.0


def notify_data(dataset: str, pvc: str) -> str:
    """Emit the event; return its id once the server has taken it.

    Raises:
        RequestError: No server is named, or nothing on it waits for that dataset.
        StepError: The server does not answer.
    """
    from prefect.settings import PREFECT_API_URL

    from flows.cli.prefect_server import answers

    url = PREFECT_API_URL.value()
    if not url:
        raise RequestError(
            "PREFECT_API_URL is not set, so nobody would hear of it. Name the server whose "
            "deployments are to start."
        )
    if not answers(url):
        raise StepError(f"PREFECT_API_URL does not answer (got {url}). Start that server.")
    _refuse_unwatched(dataset, pvc)
    from prefect.events import emit_event
    from prefect.events.worker import EventsWorker

    sent = emit_event(
        EVENT,
        resource={"prefect.resource.id": f"{RESOURCE}{dataset}", "pvc": pvc},
        payload={"dataset": dataset, "pvc": pvc},
    )
    assert sent is not None, "a server is named, so events are sent"
    EventsWorker.drain_all(timeout=SEND_SECONDS)
    return str(sent.id)


def _refuse_unwatched(dataset: str, pvc: str) -> None:
    """Raise RequestError where no deployment would start for the dataset."""
    watched = _watched(dataset)
    if any(each is None or each == (pvc, dataset) for each in watched):
        return
    there = ", ".join(sorted(f"{name} on {volume}" for volume, name in filter(None, watched)))
    raise RequestError(
        f"DATASET is watched by nothing on this server (got {dataset!r} on {pvc}). "
        + (f"Watched are: {there}. " if there else "No deployment starts when a dataset changes. ")
        + "Deploy retrain/nightly for it: prefect deploy --name nightly --param dataset=..., "
        "and see that its trigger is on."
    )


def _watched(dataset: str) -> list[tuple[str, str] | None]:
    """Volume and dataset of each deployment that the event starts; None: of any dataset."""
    from prefect.client.orchestration import get_client
    from prefect.events.actions import RunDeployment

    found: list[tuple[str, str] | None] = []
    with get_client(sync_client=True) as client:
        for automation in client.read_automations():
            if not (automation.enabled and _waits_for(automation.trigger, dataset)):
                continue
            for action in automation.actions:
                if not isinstance(action, RunDeployment) or action.deployment_id is None:
                    found.append(None)  # a user's own, which may do anything
                    continue
                asked = client.read_deployment(action.deployment_id).parameters
                asked = {**asked, **(action.parameters or {})}
                named = (asked.get(n, Parameters.model_fields[n].default) for n in _PLACE)
                volume, name = named
                found.append((volume, name) if isinstance(name, str) else None)
    return found


_PLACE = ("pvc", "dataset")


def _waits_for(trigger: Any, dataset: str) -> bool:
    """Whether the trigger, or a part of it, fires at the event of that dataset."""
    if parts := getattr(trigger, "triggers", None):
        return any(_waits_for(part, dataset) for part in parts)
    expected = getattr(trigger, "expect", None)
    if expected is None or not (not expected or any(fnmatch(EVENT, name) for name in expected)):
        return False
    match = getattr(trigger, "match", None)
    return match is None or match.matches({"prefect.resource.id": f"{RESOURCE}{dataset}"})
