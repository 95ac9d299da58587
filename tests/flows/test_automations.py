"""What the automations act on: their triggers, as Prefect's server takes and makes them."""

import asyncio
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from prefect import states
from prefect.events import DeploymentTriggerTypes, SendNotification
from prefect.server.events.actions import RunDeployment
from prefect.server.events.schemas.automations import AutomationCore, EventTrigger
from prefect.server.events.schemas.events import Event, ReceivedEvent
from prefect.server.models import events as made_by_server
from prefect.server.schemas import core
from prefect.server.schemas.responses import DeploymentResponse
from prefect.server.schemas.states import State
from prefect.server.utilities.user_templates import render_user_template
from prefect.settings.models.server.services import (
    ServerServicesCancellationCleanupSettings as CancellationCleanup,
)
from pydantic import TypeAdapter

from flows.cli.automations import healing
from flows.cli.automations.notifications import telling
from flows.stop import FLOWS, stop
from tasks.filling_up import filling_event
from tasks.waiting import waiting_event

ROOT = Path(__file__).parents[2]
TOLD = SendNotification(block_document_id=uuid.uuid4(), subject="s", body="b")


def event_of(
    name: str,
    kind: str,
    *,
    flow: str = "finetune",
    deployed: bool = True,
    starts: int = 1,
    pool: str = "local",
    message: str = "",
) -> ReceivedEvent:
    """What the server says when a run of a flow comes to that state."""
    known = core.Flow(id=uuid.uuid4(), name=flow)
    run = core.FlowRun(id=uuid.uuid4(), flow_id=known.id, name="tales", run_count=starts)
    deployment = DeploymentResponse(id=uuid.uuid4(), name="nightly", flow_id=known.id)
    works = core.WorkPool(id=uuid.uuid4(), name=pool, type="any", default_queue_id=uuid.uuid4())
    about = made_by_server._as_resource_data(
        cast(Any, run),
        known,
        deployment if deployed else None,
        None,
        works if deployed else None,
    )
    made_by_server._flow_run_resource_data_cache[run.id] = about  # in place of a database
    state = State(type=kind, name=name, message=message)
    event = asyncio.run(
        made_by_server.flow_run_state_change_event(
            cast(Any, None), datetime.now(UTC), cast(Any, run), None, None, state.id, state
        )
    )
    return event.receive()


def triggers() -> dict[str, EventTrigger]:
    """By the automation's name, as the server reads what it is sent."""
    ours = [*healing.automations(180), *telling([TOLD])]
    sent = [automation.model_dump(mode="json") for automation in ours]
    read = [AutomationCore.model_validate(automation) for automation in sent]
    return {automation.name: cast(EventTrigger, automation.trigger) for automation in read}


def acting_on(event: ReceivedEvent) -> set[str]:
    """Names of the reactive automations that the event sets off."""
    reactive = {name: t for name, t in triggers().items() if t.posture == "Reactive"}
    return {name for name, trigger in reactive.items() if trigger.covers(event)}


@pytest.mark.parametrize("flow", ["finetune", "retrain", "sweep"])
@pytest.mark.parametrize(
    ("state", "kind"),
    [
        (states.Late(), "late"),
        (states.Crashed(), "crashed"),
        (states.Completed(), "finished"),
        (states.Failed(), "failed"),
    ],
)
def test_each_kind_of_end_of_each_flow_is_told_of(flow: str, state: Any, kind: str) -> None:
    told = acting_on(event_of(state.name, state.type.value, flow=flow))
    assert told - {"finetune: crashed"} == {f"finetune: tell of {kind} runs"}
    assert not acting_on(event_of(state.name, state.type.value, flow="another"))


WAITING = waiting_event("western", "finetune", "job x: still waiting", str(uuid.uuid4()))
FILLING = filling_event("nightly", 3, "the volume is full in 3 nights", str(uuid.uuid4()))


@pytest.mark.parametrize(
    ("about", "name", "subject", "message"),
    [
        (
            WAITING,
            "finetune: tell of waiting steps",
            "finetune: the finetune step of western is waiting",
            "job x: still waiting",
        ),
        (
            FILLING,
            "finetune: tell of filling volumes",
            "finetune: the volume of nightly is filling up",
            "the volume is full in 3 nights",
        ),
    ],
)
def test_an_event_of_ours_is_told_of(
    about: dict[str, Any], name: str, subject: str, message: str
) -> None:
    sent = Event(occurred=datetime.now(UTC), id=uuid.uuid4(), **about).receive()
    assert acting_on(sent) == {name}
    (automation,) = [each for each in telling([TOLD]) if each.name == name]
    [action] = automation.actions
    assert isinstance(action, SendNotification)
    known = {"event": sent, "flow_run": None}
    shown = [asyncio.run(render_user_template(t, known)) for t in (action.subject, action.body)]
    assert shown[0] == subject
    assert shown[1].strip() == message


@pytest.mark.parametrize(("decision", "told"), [("Promoted", 1), ("Kept", 1), ("Unchanged", 0)])
def test_a_night_is_told_of_when_something_was_decided(decision: str, told: int) -> None:
    assert len(acting_on(event_of(decision, "COMPLETED", flow="retrain"))) == told
    silent = triggers()["finetune: silent"]
    # An end that it does not know would make a run that ended well one that crashed.
    assert silent.expects(f"prefect.flow-run.{decision}")


def test_only_a_run_of_ours_that_was_not_started_says_so_and_is_told_of_once() -> None:
    cancelled: dict[str, Any] = {"name": "Cancelled", "kind": "CANCELLED", "starts": 0}
    for flow in ("finetune", "retrain", "sweep"):
        not_started = event_of(**cancelled, flow=flow, message=healing.LIMIT_REACHED)
        assert acting_on(not_started) == {"finetune: not started"}
        said = event_of(healing.NOT_STARTED, "CANCELLED", flow=flow, message="Not started: ...")
        assert acting_on(said) == {"finetune: tell of not started runs"}
    assert acting_on(event_of(**cancelled)) == set()
    assert acting_on(event_of(**cancelled, flow="x", message=healing.LIMIT_REACHED)) == set()


def test_only_what_a_worker_can_start_again_is_put_back_and_not_for_ever() -> None:
    for flow in ("finetune", "retrain", "sweep"):
        assert "finetune: crashed" in acting_on(event_of("Crashed", "CRASHED", flow=flow))
    part_of_another = event_of("Crashed", "CRASHED", deployed=False)
    assert acting_on(part_of_another) == {"finetune: tell of crashed runs"}
    again = [event_of("Crashed", "CRASHED", starts=n) for n in range(healing.MOST_STARTS + 1)]
    put_back = ["finetune: crashed" in acting_on(event) for event in again]
    assert put_back == [False, True, True, True, True, False]


def stops() -> dict[str, EventTrigger]:
    """The triggers of the flow `stop`, by its pool, as `prefect deploy` sends them."""
    found = {}
    for deployment in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]:
        if deployment["entrypoint"] == "flows.stop.stop":
            [asked] = deployment["triggers"]
            given = TypeAdapter(DeploymentTriggerTypes).validate_python({"name": "stop", **asked})
            given.set_deployment_id(uuid.uuid4())
            sent = given.as_automation().model_dump(mode="json")
            automation = AutomationCore.model_validate(sent)
            found[deployment["work_pool"]["name"]] = cast(EventTrigger, automation.trigger)
            [action] = automation.actions
            assert isinstance(action, RunDeployment) and action.parameters
            assert set(action.parameters) == set(stop.parameters.properties)
    return found


def stopping(name: str, **about: Any) -> list[str]:
    """The pools in which `stop` is started by the event."""
    event = event_of(name, name.upper(), **about)
    return [pool for pool, trigger in stops().items() if trigger.covers(event)]


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize("name", ["Cancelling", "Cancelled"])
def test_a_cancel_starts_stop_in_the_pool_of_the_run(flow: str, name: str) -> None:
    assert set(stops()) == {"local", "coreweave"}
    for pool in stops():
        assert stopping(name, flow=flow, pool=pool) == [pool]
    assert stopping(name, flow=flow, pool="another") == []


def test_what_did_not_begin_or_is_not_cancelled_or_not_ours_starts_no_stop() -> None:
    # A night that is cancelled since the one before is still busy would take that one's Job.
    assert stopping("Cancelled", starts=0) == []
    assert stopping("Cancelled", starts=12) == ["local"]
    assert stopping("Crashed") == stopping("Completed") == []
    assert stopping("Cancelled", flow="stop") == stopping("Cancelled", flow="another") == []
    # What is part of another run ends with that.
    assert stopping("Cancelled", deployed=False) == []


def test_one_cancel_starts_stop_once_and_the_next_one_after_a_start_again() -> None:
    trigger = stops()["local"]
    first, again = event_of("Cancelling", "CANCELLING"), event_of("Cancelled", "CANCELLED")
    later = event_of("Cancelling", "CANCELLING", starts=2)
    for event in (again, later):
        event.resource.root["prefect.resource.id"] = first.resource.id
    assert trigger.bucketing_key(first) == trigger.bucketing_key(again)
    assert trigger.bucketing_key(first) != trigger.bucketing_key(later)
    # Else what Prefect itself ends after that time, since nobody did, would be missed.
    assert trigger.within.total_seconds() < CancellationCleanup().cancelling_timeout_seconds
