"""`finetune notify-data`: tell a Prefect server that a dataset changed.

Deployments with a trigger on the event start then (prefect.yaml, retrain/nightly).
"""

from trainer.errors import RequestError, StepError

EVENT = "dataset.updated"
RESOURCE = "finetune.dataset."
SEND_SECONDS = 30.0


def notify_data(dataset: str, pvc: str) -> str:
    """Emit the event; return its id once the server has taken it.

    Raises:
        RequestError: No server is named.
        StepError: The server does not answer.
    """
    from prefect.settings import PREFECT_API_URL

    from flows.embedded_server import answers

    url = PREFECT_API_URL.value()
    if not url:
        raise RequestError(
            "PREFECT_API_URL is not set, so nobody would hear of it. Name the server whose "
            "deployments are to start."
        )
    if not answers(url):
        raise StepError(f"PREFECT_API_URL does not answer (got {url}). Start that server.")
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
