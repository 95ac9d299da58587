"""Have the Prefect server put crashed runs back to work, and say why one was not started.

Three automations, which `finetune automations` makes on a server, or brings up to date:

    finetune: silent   a run whose orchestrator sends no heartbeat any more has crashed
    finetune: crashed  a run that crashed is scheduled again, a few times at most
    finetune: not started  a run that Prefect cancelled since another one still runs says so

Safe, since a flow holds no state: it adopts the step that went on without it. A run that
never began is left alone: its pod can't start, and starting it again would not help.
"""

from collections.abc import Sequence
from datetime import timedelta

from prefect.automations import AutomationCore
from prefect.client.orchestration import get_client
from prefect.events import ChangeFlowRunState, EventTrigger, Posture, ResourceSpecification
from prefect.settings import get_current_settings
from prefect.states import StateType

from flows.stop import FLOWS

MOST_STARTS = 5  # of one run; then somebody has to look
MISSED_BEATS = 3
OURS: dict[str, str | list[str]] = {
    "prefect.resource.role": "flow",
    "prefect.resource.name": FLOWS,
}
# A run that another one started, or a person, has no worker that would start it again.
OF_A_WORKER: dict[str, str | list[str]] = {
    "prefect.resource.role": "deployment",
    "prefect.resource.id": "prefect.deployment.*",
}
DECISIONS = ("Promoted", "Kept", "Unchanged")  # the names under which `retrain` is completed
NOT_STARTED = "NotStarted"  # the state's name
# What Prefect says of a deployment's limit of runs at a time: retrain/nightly's is one.
LIMIT_REACHED = "Deployment concurrency limit reached."
ENDS = (
    *DECISIONS,
    NOT_STARTED,
    "Completed",
    "Failed",
    "Crashed",
    "Cancelled",
    "Cancelling",
    "AwaitingRetry",
    "Paused",
)


def automations(heartbeat_seconds: int) -> list[AutomationCore]:
    """What the server is to watch for.

    Args:
        heartbeat_seconds: Between two signs of life of a flow run.
    """
    run = "prefect.flow-run"
    silent = EventTrigger(
        after={f"{run}.heartbeat"},
        expect={f"{run}.{event}" for event in ("heartbeat", *ENDS)},
        match=ResourceSpecification({"prefect.resource.id": f"{run}.*"}),
        match_related=ResourceSpecification(OURS),
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=MISSED_BEATS * heartbeat_seconds),
    )
    starts = [str(count) for count in range(1, MOST_STARTS)]
    crashed = EventTrigger(
        expect={f"{run}.Crashed"},
        match=ResourceSpecification(
            {"prefect.resource.id": f"{run}.*", "prefect.run-count": starts}
        ),
        match_related=[ResourceSpecification(OURS), ResourceSpecification(OF_A_WORKER)],
        for_each={"prefect.resource.id"},
        posture=Posture.Reactive,
        threshold=1,
    )
    return [
        _not_started(),
        AutomationCore(
            name="finetune: silent",
            description=f"{MISSED_BEATS} heartbeats missed: the orchestrator is gone.",
            trigger=silent,
            actions=[
                ChangeFlowRunState(
                    name=None,
                    state=StateType.CRASHED,
                    message="No heartbeat any more.",
                    force=False,
                )
            ],
        ),
        AutomationCore(
            name="finetune: crashed",
            description=f"Crashed runs continue where they were, until their start {MOST_STARTS}.",
            trigger=crashed,
            actions=[
                ChangeFlowRunState(
                    state=StateType.SCHEDULED,
                    name="AwaitingRetry",
                    message="Crashed; continues where it was.",
                    force=False,
                )
            ],
        ),
    ]


def _not_started() -> AutomationCore:
    """The run ends as cancelled as before, in words that say why."""
    run = "prefect.flow-run"
    about = {"prefect.resource.id": f"{run}.*", "prefect.state-message": LIMIT_REACHED}
    return AutomationCore(
        name="finetune: not started",
        description="Says of a run that it was not started since another one still runs.",
        trigger=EventTrigger(
            expect={f"{run}.Cancelled"},
            match=ResourceSpecification({**about}),
            match_related=ResourceSpecification(OURS),
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[
            ChangeFlowRunState(
                name=NOT_STARTED,
                state=StateType.CANCELLED,
                message="Not started: an earlier run of this deployment still runs.",
                force=True,  # the run has ended
            )
        ],
    )


def heartbeat_seconds() -> int:
    """Between two signs of life of a flow run, by this machine's settings."""
    return get_current_settings().flows.heartbeat_frequency or 180


def apply(wanted: Sequence[AutomationCore]) -> list[str]:
    """Make the automations, or bring those of their names up to date; return the names."""
    names = []
    with get_client(sync_client=True) as client:
        for automation in wanted:
            there = client.read_automations_by_name(automation.name)
            if there:
                client.update_automation(there[0].id, automation)
            else:
                client.create_automation(automation)
            names.append(automation.name)
    return names
