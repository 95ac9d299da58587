"""Flow runs that have begun, and whose orchestrators are gone: as a crash leaves them."""

import time
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from prefect import Flow, task
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.states import AwaitingRetry, Running, Scheduled

LATER = timedelta(hours=1)  # no worker takes them before
PATIENCE_SECONDS = 300.0


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


def what_stop_said(client: SyncPrefectClient, cancelled: uuid.UUID) -> str | None:
    """What the flow `stop` came to, which was started when the flow run was cancelled."""
    name = FlowRunFilter.model_validate({"name": {"any_": [f"stop-{cancelled}"]}})
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        found = [run.state for run in client.read_flow_runs(flow_run_filter=name) if run.state]
        if ended := [state for state in found if state.is_final()]:
            assert ended[0].is_completed(), ended[0].message
            return ended[0].message
        assert time.monotonic() < deadline, "nothing was stopped"
        time.sleep(0.2)


def running(
    client: SyncPrefectClient,
    flow: Flow[Any, Any],
    parameters: dict[str, Any],
    *,
    part_of: uuid.UUID | None = None,
    tags: Sequence[str] = (),
) -> FlowRun:
    """A run of the flow that was started by nobody's worker, perhaps as part of another one."""
    within = _task_within(client, part_of) if part_of else None
    return client.create_flow_run(
        flow, parameters=parameters, parent_task_run_id=within, tags=tags, state=Running()
    )


def _task_within(client: SyncPrefectClient, run_id: uuid.UUID) -> uuid.UUID:
    made = client.create_task_run(
        task(lambda: None, name="part"), run_id, dynamic_key=uuid.uuid4().hex, state=Running()
    )
    return made.id
