"""`finetune automations`: have the Prefect server tell of runs, and put crashed ones back to work.

    finetune: failed, finetune: late, ...   one for each kind of end, telling each block named
    finetune: silent, finetune: crashed     flows/healing.py

Applied again they are brought up to date, by name.
"""

from collections.abc import Sequence

from prefect.automations import AutomationCore
from prefect.blocks.notifications import NotificationBlock
from prefect.client.orchestration import get_client
from prefect.events import EventTrigger, Posture, ResourceSpecification, SendNotification

from flows import healing
from trainer.errors import RequestError

# What is told, by the states that a run enters. A retraining that found nothing to do is not.
STATES = {
    "failed": ("Failed",),
    "crashed": ("Crashed",),
    "late": ("Late",),
    "finished": ("Completed", "Promoted", "Kept"),
}
SUBJECT = "finetune: {{ flow_run.name }} is {{ flow_run.state.name }}"
BODY = (
    "{{ flow_run.name }} is {{ flow_run.state.name }}\n"
    "{{ flow_run.state.message or '' }}\n{{ flow_run | ui_url }}"
)


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
    """One automation for each kind of end, which takes these actions."""
    return [_telling(kind, actions) for kind in STATES]


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
