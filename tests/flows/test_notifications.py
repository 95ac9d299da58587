"""Automations as code: the block that was named tells of runs, by a real server and web hook."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from queue import Empty, Queue
from typing import Any

import pytest
from prefect import flow
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Pending, Running, Scheduled, StateType

from flows.cli.automations import healing
from flows.cli.automations.notifications import apply
from trainer.contract.errors import RequestError

WITHIN_SECONDS = 600


@pytest.fixture
def told() -> Iterator[tuple[str, "Queue[dict[str, Any]]"]]:
    """A web hook's address, and what it was sent."""
    received: Queue[dict[str, Any]] = Queue()

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Hook) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", received
        server.shutdown()


def ending_as(state: str) -> None:
    """A real run of a flow of ours that comes to that state; a late one comes to it by itself."""

    @flow(name="finetune", flow_run_name=f"western-tales-{state}")
    def a_run() -> None:
        if state == "Failed":
            raise RuntimeError("the volume is full")
        if state == "Crashed":
            raise KeyboardInterrupt

    if state == "Late":
        with get_client(sync_client=True) as client:
            client.create_flow_run(a_run, name="western-tales-Late", state=Scheduled())
        return
    with contextlib.suppress(RuntimeError, KeyboardInterrupt):
        a_run()


def test_runs_that_fail_crash_finish_or_come_late_are_told_of(
    api_url: str, told: tuple[str, "Queue[dict[str, Any]]"]
) -> None:
    url, received = told
    with temporary_settings({PREFECT_API_URL: api_url}), get_client(sync_client=True) as client:
        block = CustomWebhookNotificationBlock(
            name="hook", url=url, json_data={"subject": "{{subject}}", "body": "{{body}}"}
        )
        block.save("ops", overwrite=True)
        names = apply(["custom-webhook/ops"])
        assert apply(["custom-webhook/ops"]) == names
        there = [a.name for a in client.read_automations() if a.name in names]
        assert sorted(there) == sorted(names)
        bodies: dict[str, str] = {}
        deadline = time.monotonic() + WITHIN_SECONDS
        while missing := {"Failed", "Crashed", "Completed", "Late"} - bodies.keys():
            assert time.monotonic() < deadline, f"nobody was told of {missing}"
            # The server takes up a new automation a moment after it has answered: again, then.
            for state in sorted(missing):
                ending_as(state)
            with contextlib.suppress(Empty):
                while sent := received.get(timeout=5):
                    named, _, state = sent["subject"].rpartition(" is ")
                    assert named == f"finetune: western-tales-{state}"
                    bodies[state] = sent["body"]
        assert "the volume is full" in bodies["Failed"]
        for automation in client.read_automations():
            if automation.name in names:
                client.delete_automation(automation.id)


def test_a_night_that_was_not_started_since_one_still_runs_says_so(api_url: str) -> None:
    @flow(name="retrain")
    def a_night() -> None:
        pass

    with temporary_settings({PREFECT_API_URL: api_url}), get_client(sync_client=True) as client:
        made = client.create_deployment(
            client.create_flow(a_night),
            "busy",
            concurrency_limit=1,
            concurrency_options={"collision_strategy": "CANCEL_NEW"},
        )
        first = client.create_flow_run_from_deployment(made)
        for state in (Pending(), Running()):
            client.set_flow_run_state(first.id, state)
        apply([])
        deadline = time.monotonic() + WITHIN_SECONDS
        found = Pending()
        # The server takes up a new automation a moment after it has answered: again, then.
        while found.name != "NotStarted":
            assert time.monotonic() < deadline, found
            second = client.create_flow_run_from_deployment(made)
            client.set_flow_run_state(second.id, Pending())
            for _ in range(20):
                time.sleep(0.2)
                found = client.read_flow_run(second.id).state or found
                assert found.type in (StateType.CANCELLED, StateType.PENDING)
        assert found.message == "Not started: an earlier run of this deployment still runs."
        assert found.type == StateType.CANCELLED
        assert client.read_flow_run(first.id).state_name == "Running"
        for each in healing.automations(180):
            for there in client.read_automations_by_name(each.name):
                client.delete_automation(there.id)


@pytest.mark.parametrize("name", ["custom-webhook/none", "nothing/none", "ops"])
def test_a_block_that_is_not_there_is_refused(api_url: str, name: str) -> None:
    with (
        temporary_settings({PREFECT_API_URL: api_url}),
        pytest.raises(RequestError, match=rf"--tell names no .*got '{name}'"),
    ):
        apply([name])


def test_a_block_that_cannot_notify_is_refused(api_url: str) -> None:
    with temporary_settings({PREFECT_API_URL: api_url}):
        Secret(value="x").save("not-a-hook", overwrite=True)
        with pytest.raises(RequestError, match="can't notify"):
            apply(["secret/not-a-hook"])
