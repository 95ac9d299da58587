"""Clients that break things: afterwards the server answers as before and has its memory back."""

import socket
import threading
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from infra.local import service_client
from infra.local.service import Service

ENDLESS = {"prompt": "The", "max_tokens": 240, "logit_bias": {"0": -100}, "model": "final"}


def metric(client: httpx.Client, name: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    (line,) = [line for line in lines if line.startswith(f"{name} ")]
    return float(line.split(" ")[1])


def wait_until_idle(client: httpx.Client) -> None:
    while metric(client, "finetune_sequences_under_way") + metric(
        client, "finetune_sequences_waiting"
    ):
        pass


def resident_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = [line for line in status.splitlines() if line.startswith("VmRSS")]
    return int(line.split()[1]) * 1024


@pytest.fixture(autouse=True)
def still_answers(client: httpx.Client, service: Service) -> None:
    before = service_client.ask(service, "Dust", max_tokens=10, temperature=0)
    yield
    wait_until_idle(client)
    assert service_client.ask(service, "Dust", max_tokens=10, temperature=0) == before


@pytest.mark.parametrize("path", ["/completion", "/v1/completions", "/v1/models/final:predict"])
@pytest.mark.parametrize(
    "body", [b"{", b"\xff\xfe", b"[1]", b'"text"', b"", b"[" * 100_000, b'{"prompt": NaN}']
)
def test_what_is_no_json_object_is_refused_as_that(
    client: httpx.Client, path: str, body: bytes
) -> None:
    for headers in ({}, {"Content-Type": "application/json"}):
        response = client.post(path, content=body, headers=headers)
        assert response.status_code == 400
        assert "error" in response.json()


MANY = 100_000
CROWDED = {f"{number}x": "x" for number in range(MANY)}


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("v2", {"inputs": [{}] * MANY}, f"inputs has too many entries (got {MANY})"),
        ("v2", {"inputs": [{"shape": [""] * MANY}]}, "shape has too many entries"),
        ("completions", {"prompt": [None] * MANY}, "prompt"),
        ("completions", {"prompt": [""] * MANY}, f"prompt has too many entries (got {MANY})"),
        ("completions", CROWDED, f"the body has too many fields (got {MANY + 1})"),
        ("completions", {"prompt": "A", "logit_bias": CROWDED}, "logit_bias has too many fields"),
        ("completions", {"prompt": "A", "stop": [1] * MANY}, "stop"),
        ("chat/completions", {"messages": [{}] * MANY}, "messages has too many"),
        ("chat/completions", {"messages": [CROWDED]}, "messages has too many fields"),
        ("models/final:predict", {"instances": [1] * MANY}, "instances"),
        ("models/final:predict", {"instances": ["A"], "parameters": CROWDED}, "parameters has too"),
    ],
)
def test_a_body_in_which_all_is_wrong_costs_one_sentence(
    client: httpx.Client, service: Service, path: str, body: dict[str, Any], words: str
) -> None:
    before = resident_bytes(service.pid)
    path = "/v2/models/final/infer" if path == "v2" else f"/v1/{path}"
    model = {"model": "final"} if "completions" in path else {}
    response = client.post(path, json={**model, **body})
    assert response.status_code == 400
    assert words in response.text
    assert len(response.text) < 1000
    assert resident_bytes(service.pid) - before < 500 * 2**20


def test_body_beyond_the_limit_is_refused_without_being_kept(
    client: httpx.Client, service: Service
) -> None:
    def pieces() -> object:
        for _ in range(40):
            yield b"x" * 2**20

    before = resident_bytes(service.pid)
    for _ in range(5):
        try:
            response = client.post("/completion", content=pieces())
        except httpx.TransportError:
            continue  # refused and closed while we still sent
        assert response.status_code == 413
        assert "2097152 bytes" in response.json()["error"]
    assert resident_bytes(service.pid) - before < 150 * 2**20


def test_huge_prompt_is_refused_before_it_is_tokenized(client: httpx.Client) -> None:
    body = {"prompt": "x" * 1_500_000, "model": "final"}
    response = client.post("/v1/completions", json=body)
    assert response.status_code == 400
    assert "1500000 characters" in response.json()["error"]["message"]
    assert client.post("/v1/completions", json={"prompt": "x" * 15_000_000}).status_code == 413


@pytest.mark.parametrize("stream", [True, False])
def test_client_that_hangs_up_frees_its_rows(
    client: httpx.Client, service: Service, stream: bool
) -> None:
    def answered() -> float:
        return metric(client, "finetune_tokens_total")

    before = answered()
    for _ in range(6):
        begun = answered()
        body = httpx.Request("POST", service.url, json={**ENDLESS, "n": 4, "stream": stream})
        address = urlsplit(service.url)
        with socket.create_connection((address.hostname, address.port)) as connection:
            head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n"
            connection.sendall(head.format(len(body.content)).encode() + body.content)
            while metric(client, "finetune_sequences_under_way") == 0 and answered() == begun:
                pass
    wait_until_idle(client)
    assert answered() - before < 6 * 4 * 240 * 0.8


def test_client_that_leaves_in_the_middle_of_its_body_is_forgotten(service: Service) -> None:
    address = urlsplit(service.url)
    for _ in range(20):
        with socket.create_connection((address.hostname, address.port)) as connection:
            connection.sendall(b'POST /completion HTTP/1.1\r\nContent-Length: 99\r\n\r\n{"pro')


def test_flood_is_answered_or_told_to_come_back_and_memory_returns(
    client: httpx.Client, service: Service
) -> None:
    before = resident_bytes(service.pid)
    statuses: list[int] = []
    retry_after: set[str | None] = set()

    def ask_often() -> None:
        with httpx.Client(base_url=service.url, timeout=240, trust_env=False) as own:
            for _ in range(20):
                response = own.post("/v1/completions", json={**ENDLESS, "n": 12, "max_tokens": 2})
                statuses.append(response.status_code)
                if response.status_code == 429:
                    retry_after.add(response.headers.get("Retry-After"))
                    assert response.json()["error"]["type"] == "rate_limit_error"

    threads = [threading.Thread(target=ask_often) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(statuses) == 1000
    assert set(statuses) == {200, 429}
    assert retry_after == {"2"}
    wait_until_idle(client)
    assert resident_bytes(service.pid) - before < 150 * 2**20
