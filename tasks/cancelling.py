"""Notice that a flow run was cancelled in Prefect, and tell a cancel from any other end.

A worker that cancels ends the process of the flow run by SIGTERM, as a machine does that goes
away: only the server knows which it was. Who runs the flow by himself (`finetune run`) is sent
nothing at all: he asks the server now and then, while he follows a step.
"""

import contextlib
import contextvars
import os
import signal
import threading
import uuid
from collections.abc import Collection, Iterator
from typing import Any

from prefect import tags
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run
from prefect.states import Cancelled, State

from tasks.artifacts import SERVER_ERRORS
from trainer.contract.errors import Interrupted

ASK_SECONDS = 10.0
SUPERVISED_VARIABLE = (
    "PREFECT__FLOW_RUN_ID"  # set by the process that starts flow runs, and ends them
)
# Id of the flow run that started this process for a part of its own work: a sweep, for a trial.
STARTED_BY_VARIABLE = "FINETUNE_STARTED_BY"


class CancelledInPrefect(Interrupted):
    """The flow run was cancelled in Prefect's UI, and its step is ended.

    Args:
        flow_runs: Ids of the flow runs that are to end as cancelled.
    """

    def __init__(self, message: str, flow_runs: Collection[uuid.UUID] = ()) -> None:
        super().__init__(message)
        self.flow_runs = flow_runs


def is_cancelled() -> bool:
    """Whether the server says that this flow run, or one that it is part of, was cancelled."""
    asked = flow_runs()
    if started_by := os.environ.get(STARTED_BY_VARIABLE):
        asked.add(uuid.UUID(started_by))
    with get_client(sync_client=True) as client:
        states = [client.read_flow_run(run_id).state for run_id in asked]
    return any(
        state is not None and (state.is_cancelling() or state.is_cancelled()) for state in states
    )


def flow_runs() -> set[uuid.UUID]:
    """Ids of this flow run and of the outermost one: who cancels, cancels that."""
    ids = (flow_run.get_id(), flow_run.get_root_flow_run_id())
    return {uuid.UUID(run_id) for run_id in ids if run_id}


def environment_of_part() -> dict[str, str]:
    """The environment of a process that does a part of this flow run as a flow run of its own."""
    # Who ends this flow run when it is cancelled does not know of that one.
    environment = {n: value for n, value in os.environ.items() if n != SUPERVISED_VARIABLE}
    return environment | {STARTED_BY_VARIABLE: flow_run.get_id() or ""}


def started_by_tag(run_id: uuid.UUID | str) -> str:
    """Tag of the flow runs that do a part of that one in processes of their own."""
    return f"started-by:{run_id}"


@contextlib.contextmanager
def tagged_as_part() -> Iterator[None]:
    """Have the flow runs of the block found by the flow run that started this process."""
    started_by = os.environ.get(STARTED_BY_VARIABLE)
    with tags(*([started_by_tag(started_by)] if started_by else [])):
        yield


def is_supervised() -> bool:
    """Whether somebody started this process who ends it when its flow run is cancelled."""
    return SUPERVISED_VARIABLE in os.environ


@contextlib.contextmanager
def ending_as_cancelled() -> Iterator[None]:
    """Around a flow without a supervisor: else it would end as failed where it was cancelled."""
    try:
        yield
    except CancelledInPrefect as error:
        state: State[Any] = Cancelled(message=str(error))
        with contextlib.suppress(*SERVER_ERRORS), get_client(sync_client=True) as client:
            for run_id in error.flow_runs:
                client.set_flow_run_state(run_id, state, force=True)
        raise


@contextlib.contextmanager
def told_of_cancel() -> Iterator[None]:
    """Have a cancel of this flow run interrupt the block, as a worker's SIGTERM does."""
    main = threading.main_thread()
    if is_supervised() or threading.current_thread() is not main:
        yield
        return
    over, at_the_end = threading.Event(), threading.Lock()

    def ask() -> None:
        while not over.wait(ASK_SECONDS):
            with contextlib.suppress(*SERVER_ERRORS):  # the server may be away: asked again
                if is_cancelled():
                    break
        with at_the_end:  # what is over is not interrupted any more
            if not over.is_set():
                assert main.ident is not None
                signal.pthread_kill(main.ident, signal.SIGTERM)

    context = contextvars.copy_context()  # which server it is
    threading.Thread(target=context.run, args=(ask,), name="cancelling", daemon=True).start()
    try:
        yield
    finally:
        with at_the_end:
            over.set()
