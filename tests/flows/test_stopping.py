"""The flow `stop`: what it ends of a flow run that was cancelled, and what it leaves alone."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import AwaitingRetry, Cancelled, Cancelling, Running, Scheduled

from flows import stop as stopping
from flows.finetune import finetune
from flows.retrain import retrain
from flows.stop import end_unfollowed
from flows.sweep import sweep
from infra.choose_backend import HOME_VARIABLE
from infra.local.processes import LocalBackend
from tasks.cancelling import started_by_tag
from tests.flows.unfollowed import running
from tests.infra.test_local_processes import PVC, backend_at, spec, wait_for_start

ASKED = {"run_name": "run", "pvc": PVC}


@pytest.fixture
def backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalBackend]:
    """With a step of the run `run` running that nobody follows."""
    monkeypatch.setattr(stopping, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))
    (tmp_path / PVC).mkdir()
    made = backend_at(tmp_path)
    made.submit(spec(until="never"))
    wait_for_start(tmp_path)
    yield made
    made.stop(PVC, "run", grace_seconds=1)


@pytest.fixture
def client(api_url: str) -> Iterator[SyncPrefectClient]:
    with temporary_settings({PREFECT_API_URL: api_url}), get_client(sync_client=True) as made:
        before = {run.id for run in made.read_flow_runs()}
        yield made
        for run in made.read_flow_runs():  # else they are at work for ever
            if run.id not in before:
                made.delete_flow_run(run.id)


def stopped(client: SyncPrefectClient, run: FlowRun, state: Any = Cancelled) -> str:
    """What the flow says of the run, once that is in this state."""
    client.set_flow_run_state(run.id, state(), force=True)
    return end_unfollowed(client, run.id, print)


@pytest.mark.parametrize("state", [Cancelling, Cancelled])
def test_a_step_that_nobody_follows_is_ended_and_the_run_is_cancelled(
    client: SyncPrefectClient, backend: LocalBackend, state: Any
) -> None:
    run = running(client, finetune, ASKED)
    assert stopped(client, run, state) == f"{run.name}: stopped finetune of run."
    assert backend.running_steps(PVC, "run") == []
    now = client.read_flow_run(run.id).state
    assert now is not None and now.is_cancelled()
    assert stopped(client, run) == f"{run.name}: nothing to stop."


def test_whoever_follows_the_step_has_the_time_to_end_it_himself(
    client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = running(client, finetune, ASKED)
    looks: list[float] = []

    def end_it(seconds: float) -> None:
        looks.append(seconds)
        client.set_flow_run_state(run.id, Cancelled(message="saved"), force=True)

    clock = SimpleNamespace(monotonic=time.monotonic, sleep=end_it)
    monkeypatch.setattr(stopping, "time", clock)
    assert stopped(client, run, Cancelling) == f"{run.name}: nothing to stop."
    assert len(looks) == 1
    now = client.read_flow_run(run.id).state
    assert now is not None and now.message == "saved"


def test_a_run_that_waited_to_be_started_has_nobody_to_wait_for(
    client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = running(client, finetune, ASKED)
    client.set_flow_run_state(run.id, AwaitingRetry(), force=True)
    monkeypatch.setattr(stopping, "time", SimpleNamespace(monotonic=time.monotonic))
    assert stopped(client, run, Cancelling) == f"{run.name}: nothing to stop."


def test_one_that_is_at_work_again_is_left_alone(
    client: SyncPrefectClient, backend: LocalBackend
) -> None:
    run = running(client, finetune, ASKED)
    assert "is not cancelled any more" in stopped(client, run, Running)
    assert backend.running_steps(PVC, "run") == ["finetune"]


@pytest.mark.parametrize(
    ("due_in_hours", "pvc", "left"), [(-1, PVC, True), (1, PVC, False), (-1, "other", False)]
)
def test_a_step_is_left_to_a_flow_run_that_is_about_to_follow_it(
    client: SyncPrefectClient, backend: LocalBackend, due_in_hours: int, pvc: str, left: bool
) -> None:
    due = datetime.now(UTC) + timedelta(hours=due_in_hours)
    client.create_flow_run(
        finetune, parameters={**ASKED, "pvc": pvc}, state=Scheduled(scheduled_time=due)
    )
    stopped(client, running(client, finetune, ASKED))
    assert backend.running_steps(PVC, "run") == (["finetune"] if left else [])


def test_a_step_is_left_to_whoever_holds_its_run(
    client: SyncPrefectClient, backend: LocalBackend
) -> None:
    with backend.claim(PVC, "run", attempt="another flow run"):
        stopped(client, running(client, finetune, ASKED))
        assert backend.running_steps(PVC, "run") == ["finetune"]


@pytest.mark.parametrize("outer", [retrain, sweep])
def test_what_runs_as_part_of_the_run_ends_with_it(
    client: SyncPrefectClient, backend: LocalBackend, outer: Any
) -> None:
    whole = running(client, outer, {"run_name": "series", "pvc": PVC})
    if outer is retrain:
        part = running(client, finetune, ASKED, part_of=whole.id)
    else:
        part = running(client, finetune, ASKED, tags=[started_by_tag(whole.id)])
    with backend.claim(PVC, "run", attempt=str(part.id)):
        assert "stopped finetune of run" in stopped(client, whole)
    assert backend.running_steps(PVC, "run") == []


def test_parts_are_left_to_another_run_of_the_whole(
    client: SyncPrefectClient, backend: LocalBackend
) -> None:
    asked = {"run_name": "series", "pvc": PVC}
    tonight, _ = running(client, retrain, asked), running(client, retrain, asked)
    running(client, finetune, ASKED, part_of=tonight.id)
    stopped(client, tonight)
    assert backend.running_steps(PVC, "run") == ["finetune"]
