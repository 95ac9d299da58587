"""Automations as code: a run that fails is told of by the block that was named."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from queue import Queue
from typing import Any

import pytest
from prefect import flow
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Failed, Running

from flows.notifications import apply
from trainer.errors import RequestError

WITHIN_SECONDS = 120


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


@flow(name="finetune")
def a_run() -> None:
    pass


def test_a_run_that_fails_is_told_of(
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
        # The server takes up a new automation a moment after it has answered.
        deadline = time.monotonic() + WITHIN_SECONDS
        while received.empty():
            assert time.monotonic() < deadline, "nobody was told"
            run = client.create_flow_run(a_run, name="western-tales")
            client.set_flow_run_state(run.id, Running(), force=True)
            client.set_flow_run_state(run.id, Failed(message="the volume is full"), force=True)
            time.sleep(2)
        sent = received.get()
        assert sent["subject"] == "finetune: western-tales is Failed"
        assert "the volume is full" in sent["body"]
        for automation in client.read_automations():
            if automation.name in names:
                client.delete_automation(automation.id)


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
