"""`finetune automations`: have the Prefect server tell of runs, and put crashed ones back to work.

    finetune: tell of failed runs, ...      one for each kind of end, telling each block named
    finetune: tell of waiting steps         steps that have waited a quarter of an hour for a node
    finetune: tell of filling volumes       a volume that so many nights of a series will fill
    finetune: silent, finetune: crashed, finetune: not started
                                            flows/cli/automations/healing.py

Applied again they are brought up to date, by name.
"""

from collections.abc import Sequence
from datetime import timedelta

from prefect.automations import AutomationCore
from prefect.blocks.notifications import NotificationBlock
from prefect.client.orchestration import get_client
from prefect.events import EventTrigger, Posture, ResourceSpecification, SendNotification

from flows.cli.automations import healing
from tasks import filling_up, waiting
from trainer.contract.errors import RequestError

# What is told, by the states that a run enters. A retraining that found nothing to do is not.
STATES = {
    "failed": ("Failed",),
    "crashed": ("Crashed",),
    "late": ("Late",),
    "not started": (healing.NOT_STARTED,),
    "finished": ("Completed", "Promoted", "Kept"),
}
SUBJECT = "finetune: {{ flow_run.name }} is {{ flow_run.state.name }}"
BODY = (
    "{{ flow_run.name }} is {{ flow_run.state.name }}\n"
    "{{ flow_run.state.message or '' }}\n{{ flow_run | ui_url }}"
)
WAITING_SUBJECT = "finetune: {{ event.resource.name }} is waiting"
FILLING_SUBJECT = "finetune: {{ event.resource.name }} is filling up"
MESSAGE_BODY = "{{ event.payload.message }}\n{{ flow_run | ui_url if flow_run else '' }}"


def apply(blocks: Sequence[str]) -> list[str]:
    """Make all automations, or bring them up to date; their names.

    Args:
        blocks: Notification blocks as `type/name`: slack-webhook/team, sendgrid-email/owners, ...
    Raises:
        RequestError: There is no such block.
    """
    actions = [_action(block) for block in blocks]
    told = telling(actions) if actions else []
    return healing.apply([*healing.automations(healing.heartbeat_seconds()), *told])


def telling(actions: Sequence[SendNotification]) -> list[AutomationCore]:
    """One automation for each kind of end, for steps that wait and for volumes that fill up."""
    of_waiting = _of_event(
        actions,
        name="finetune: tell of waiting steps",
        description="Sends a notification when a step waits for a node, an image or a queue.",
        subject=WAITING_SUBJECT,
        event=waiting.EVENT,
        resource=waiting.RESOURCE,
    )
    of_filling = _of_event(
        actions,
        name="finetune: tell of filling volumes",
        description="Sends a notification when few more nights of a retraining fit on its volume.",
        subject=FILLING_SUBJECT,
        event=filling_up.EVENT,
        resource=filling_up.RESOURCE,
    )
    return [*(_telling(kind, actions) for kind in STATES), of_waiting, of_filling]


def _of_event(
    actions: Sequence[SendNotification],
    *,
    name: str,
    description: str,
    subject: str,
    event: str,
    resource: str,
) -> AutomationCore:
    """Sends a notification for an event of ours, once in six hours for each resource."""
    words = {"subject": subject, "body": MESSAGE_BODY}
    return AutomationCore(
        name=name,
        description=description,
        trigger=EventTrigger(
            expect={event},
            match=ResourceSpecification({"prefect.resource.id": f"{resource}*"}),
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
            within=timedelta(hours=6),
        ),
        actions=[action.model_copy(update=words) for action in actions],
    )


def _telling(kind: str, actions: Sequence[SendNotification]) -> AutomationCore:
    return AutomationCore(
        name=f"finetune: tell of {kind} runs",
        description=f"Sends a notification when a run is {kind}: of finetune, retrain or sweep.",
        trigger=EventTrigger(
            expect={f"prefect.flow-run.{state}" for state in STATES[kind]},
            match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
            match_related=ResourceSpecification(healing.OURS),
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=list(actions),
    )


def _action(block: str) -> SendNotification:
    kind, _, name = block.partition("/")
    with get_client(sync_client=True) as client:
        known = {found.slug for found in client.read_block_types()} if name else set()
        documents = client.read_block_documents_by_type(kind) if kind in known else []
    found = next((document for document in documents if document.name == name), None)
    if found is None:
        there = ", ".join(f"{kind}/{document.name}" for document in documents)
        raise RequestError(
            f"--tell names no notification block of the server (got {block!r}). "
            f"It is TYPE/NAME; {'there are: ' + there if there else 'of this type there is none'}. "
            "Make one in the UI under Blocks, for instance slack-webhook/team."
        )
    if found.block_schema is None or "notify" not in found.block_schema.capabilities:
        raise RequestError(
            f"--tell names a block that can't notify (got {block!r}). "
            f"Take one of {NotificationBlock.__name__}'s kinds: slack-webhook, custom-webhook, ..."
        )
    return SendNotification(block_document_id=found.id, subject=SUBJECT, body=BODY)
