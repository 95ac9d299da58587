"""A flow run that no worker started is cancelled in Prefect: its step ends, and so does it."""

import os
import signal
import threading
from pathlib import Path

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.exceptions import TerminationSignal
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling

from infra.local.processes import LocalBackend
from tasks import cancelling
from tasks.cancelling import SUPERVISED_VARIABLE, CancelledInPrefect, ending_as_cancelled
from tasks.run_step import Run, cancelled_with_its_steps, run_step
from tests.infra.test_local_processes import PVC, backend_at, spec, wait_for_start


def cancel_once_it_runs(api_url: str, home: Path, run_id: str) -> None:
    """As the button in the UI does."""
    wait_for_start(home)
    with temporary_settings({PREFECT_API_URL: api_url}), get_client(sync_client=True) as client:
        client.set_flow_run_state(run_id, Cancelling())


def run_of(backend: LocalBackend, attempt: str) -> Run:
    parameters = {"run_name": "run", "pvc": PVC, "logs": "logs"}
    return Run(parameters=parameters, request={}, attempt=attempt, backend=backend)


def test_whoever_runs_the_flow_in_a_terminal_is_told_of_a_cancel(
    api_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cancelling, "ASK_SECONDS", 0.1)
    (tmp_path / PVC).mkdir()
    backend: LocalBackend = backend_at(tmp_path)
    ids: list[str] = []

    @flow
    def outer() -> None:
        ids.append(flow_run.get_id())
        cancel = threading.Thread(target=cancel_once_it_runs, args=(api_url, tmp_path, ids[0]))
        cancel.start()
        follows()

    @flow
    def follows() -> None:
        ids.append(flow_run.get_id())
        run = run_of(backend, attempt=ids[1])
        with cancelled_with_its_steps(run):
            run_step(run, spec(until="never"))

    with temporary_settings({PREFECT_API_URL: api_url}):
        words = "cancelled in Prefect: the finetune step"
        with pytest.raises(CancelledInPrefect, match=words), ending_as_cancelled():
            outer()
        with get_client(sync_client=True) as client:
            states = [client.read_flow_run(run_id).state for run_id in ids]
    assert [state.type.value for state in states] == ["CANCELLED", "CANCELLED"]
    assert backend.running_steps(PVC, "run") == []


@pytest.mark.parametrize("cancelled", [True, False])
def test_a_cancel_ends_what_an_earlier_attempt_left_and_another_end_leaves_it(
    api_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cancelled: bool
) -> None:
    (tmp_path / PVC).mkdir()
    backend: LocalBackend = backend_at(tmp_path)
    backend.submit(spec(until="never"))
    wait_for_start(tmp_path)
    monkeypatch.setenv(SUPERVISED_VARIABLE, "as a worker sets it")

    @flow
    def ended_before_it_follows() -> None:
        with cancelled_with_its_steps(run_of(LocalBackend(tmp_path), flow_run.get_id())):
            if cancelled:
                with get_client(sync_client=True) as client:
                    client.set_flow_run_state(flow_run.get_id(), Cancelling())
            os.kill(os.getpid(), signal.SIGTERM)

    # Prefect hands the signal on to the handler that was there, which else ends these tests.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with temporary_settings({PREFECT_API_URL: api_url}), pytest.raises(TerminationSignal):
            ended_before_it_follows()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert backend.running_steps(PVC, "run") == ([] if cancelled else ["finetune"])
    backend.stop(PVC, "run", grace_seconds=1)
