"""The flow `stop`: end what a flow run that was cancelled has running, if nobody else does.

A step's follower ends it when its flow run is cancelled (tasks/cancelling.py). While a flow
run waits to be started again after a crash, or its orchestrator is gone, nobody does: Prefect
changes its state, and the step would continue. So triggers in prefect.yaml start this flow at each
cancel, in the pool of the flow run. Mostly it finds nothing left.
"""

import time
import uuid
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence, Set
from datetime import UTC, datetime
from typing import Any

from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowFilter, FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.logging import get_run_logger
from prefect.states import Cancelled, Completed, State

from flows.retrain import RetrainParameters
from infra.backend import Line
from infra.choose_backend import backend_from_environment
from tasks.cancelling import started_by_tag
from trainer.contract.parameters import Parameters, cluster_settings
from trainer.contract.validation import load_parameters

# For the follower of the steps: it hears of a cancel itself, and tells best how it ended.
PATIENCE_SECONDS = 15.0
LOOK_SECONDS = 1.0
PAGE = 200  # flow runs that the server gives at a time
Place = tuple[str, str]  # volume and name of a run
FLOWS = ["finetune", "retrain", "sweep"]  # whose cancels start this flow
WHERE = ("run_name", "pvc", "logs", "cluster")  # parameters that say where a run's steps are


@flow(name="stop", flow_run_name="stop-{cancelled}")
def stop(cancelled: uuid.UUID) -> State[Any]:
    """End the steps of a flow run that was cancelled, unless another flow run follows them.

    Args:
        cancelled: Id of the flow run that was cancelled.
    """
    logger = get_run_logger()
    with get_client(sync_client=True) as client:
        words = end_unfollowed(client, cancelled, logger.info)
    logger.info("%s", words)
    return Completed(message=words)


def end_unfollowed(client: SyncPrefectClient, cancelled: uuid.UUID, say: Line) -> str:
    """End the steps of that flow run which no other one follows; what was ended, in words."""
    run = _once_ended(client, cancelled)
    if run.state is None or not (run.state.is_cancelled() or run.state.is_cancelling()):
        return f"{run.name} is not cancelled any more: nothing is stopped."
    family = _family(client, run)
    stopped = _stop(family, _at_work(client, family), say)
    words = f"{run.name}: {'stopped ' + ', '.join(stopped) if stopped else 'nothing to stop'}."
    if run.state.is_cancelling():  # nobody is left to say so
        client.set_flow_run_state(run.id, Cancelled(message=words), force=True)
    return words


def _once_ended(client: SyncPrefectClient, run_id: uuid.UUID) -> FlowRun:
    """The flow run, when its follower has ended it or has had the time to."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        run = client.read_flow_run(run_id)
        if run.state is None or not run.state.is_cancelling() or time.monotonic() > deadline:
            return run
        if _had_no_orchestrator(client, run_id):
            return run
        time.sleep(LOOK_SECONDS)


def _had_no_orchestrator(client: SyncPrefectClient, run_id: uuid.UUID) -> bool:
    """Whether it waited to be started when it was cancelled."""
    states = sorted(client.read_flow_run_states(run_id), key=lambda state: state.timestamp)
    before = [state for state in states if not state.is_cancelling()]
    return bool(before) and before[-1].is_scheduled()


def _family(client: SyncPrefectClient, run: FlowRun) -> list[FlowRun]:
    """The flow run and those that it started, over all its attempts."""
    found, parents = [run], [run]
    while parents:
        ids = [parent.id for parent in parents]
        within = _read(client, parent_flow_run_id={"any_": ids})
        beside = _read(client, tags={"any_": [started_by_tag(run_id) for run_id in ids]})
        parents = [*within, *beside]
        found += parents
    return found


def _asked(run: FlowRun) -> dict[str, Any]:
    """What the flow run was asked; only a retraining has a name of its own accord."""
    default = RetrainParameters.model_fields["run_name"].default
    return {"run_name": default, "pvc": Parameters.model_fields["pvc"].default, **run.parameters}


def _place(run: FlowRun) -> Place:
    asked = _asked(run)
    return asked["pvc"], asked["run_name"]


def _at_work(client: SyncPrefectClient, family: Collection[FlowRun]) -> set[Place]:
    """Where other flow runs follow steps, or are about to."""
    ours = {run.id for run in family}
    alive = _read(client, state={"type": {"any_": ["RUNNING", "PENDING", "SCHEDULED"]}})
    return {_place(run) for run in alive if run.id not in ours and _is_due(run)}


def _is_due(run: FlowRun) -> bool:
    """Whether it is not one of a schedule's for later."""
    start = run.next_scheduled_start_time
    return start is None or start <= datetime.now(UTC)


def _stop(family: Sequence[FlowRun], at_work: Set[Place], say: Line) -> list[str]:
    """End the steps of the family, the first of which started the others; which they were."""
    stopped, attempts = [], defaultdict(set)
    for run in family:
        # Of one name are attempts after a crash: each one's mark may still be on a step.
        attempts[_place(run)].add(str(run.id))
    asked = {_place(run): _asked(run) for run in family}
    for place, ids in attempts.items():
        if {place, _place(family[0])} & at_work:
            say(f"{place[1]} is left to another flow run of that name, which continues with it")
        else:
            stopped += [f"{step} of {place[1]}" for step in _stop_run(asked[place], ids, say)]
    return stopped


def _stop_run(asked: Mapping[str, Any], attempts: Collection[str], say: Line) -> list[str]:
    where = load_parameters(Parameters, {name: asked[name] for name in WHERE if name in asked})
    backend = backend_from_environment(where.logs, cluster_settings(where))
    return backend.stop(where.pvc, where.run_name, attempts=attempts, on_line=say)


def _read(client: SyncPrefectClient, **which: Any) -> list[FlowRun]:
    """All flow runs of our flows that the filter takes."""
    found: list[FlowRun] = []
    while True:
        page = client.read_flow_runs(
            flow_run_filter=FlowRunFilter.model_validate(which),
            flow_filter=FlowFilter.model_validate({"name": {"any_": FLOWS}}),
            sort=FlowRunSort.ID_DESC,
            limit=PAGE,
            offset=len(found),
        )
        found += page
        if len(page) < PAGE:
            return found
