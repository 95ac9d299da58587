"""Flow runs that have begun, and whose orchestrators are gone: as a crash leaves them."""

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from prefect import Flow
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.states import AwaitingRetry, Running, Scheduled

LATER = timedelta(hours=1)  # no worker takes them before


def begun(client: SyncPrefectClient, deployment: str, parameters: dict[str, Any]) -> FlowRun:
    """A run of the deployment that waits to be started again."""
    found = client.read_deployment_by_name(deployment)
    later = datetime.now(UTC) + LATER
    run = client.create_flow_run_from_deployment(
        found.id, parameters=parameters, state=Scheduled(scheduled_time=later)
    )
    client.set_flow_run_state(run.id, Running(), force=True)
    client.set_flow_run_state(run.id, AwaitingRetry(scheduled_time=later), force=True)
    return client.read_flow_run(run.id)


def running(
    client: SyncPrefectClient,
    flow: Flow[Any, Any],
    parameters: dict[str, Any],
    *,
    part_of: uuid.UUID | None = None,
    tags: Sequence[str] = (),
) -> FlowRun:
    """A run of the flow that was started by nobody's worker, perhaps as part of another one."""
    task = _task_within(client, part_of) if part_of else None
    return client.create_flow_run(
        flow, parameters=parameters, parent_task_run_id=task, tags=tags, state=Running()
    )


def _task_within(client: SyncPrefectClient, run_id: uuid.UUID) -> uuid.UUID:
    from prefect import task

    made = client.create_task_run(
        task(lambda: None, name="part"), run_id, dynamic_key=uuid.uuid4().hex, state=Running()
    )
    return made.id
