"""One request, or one client, that would keep the server from all others: what it gets."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from infra.local import service_client
from infra.local.service_client import Address, NoAnswerError

KEY, VARIABLE = "a-key.of_this-test", "TEST_ENDPOINT_KEY"
ORIGIN = "https://example.org"
# Of a test's patience; what is tested is that there is a limit at all.
IMPATIENT = """
import trainer.serving.deadlines as d, trainer.serving.api.disconnects as h
import trainer.serving.http_limits as l, trainer.serving.readers as r
import trainer.serving.lingering as g
d.STOPPING_SECONDS = 1.0
h.PIECE_SECONDS, h.BODY_SECONDS = 1.0, 2.0
l.HEAD_SECONDS = 1.0
g.LINGER_SECONDS = 2.0
r.READ_SECONDS = 3.0
"""


@contextlib.contextmanager
def serving(volume: Path, folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], str, Path]]:
    """An impatient server with an API key: its process, address and log."""
    ready, config, log = folder / "ready.json", folder / "config.json", folder / "serve.log"
    given = {"volume": str(volume), "model": "tales/final", "ready_file": str(ready)}
    given |= {"api_key_variable": VARIABLE, "cors_origins": [ORIGIN]}
    config.write_text(json.dumps(given))
    code = f"import runpy\n{IMPATIENT}\nrunpy.run_module('trainer', run_name='__main__')"
    outcome = str(folder / "outcome.json")
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", code, "serve", str(config)],
            env={**os.environ, VARIABLE: KEY, "FINETUNE_TERMINATION_PATH": outcome},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        while not ready.exists():
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        yield process, json.loads(ready.read_text())["url"], log
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def server(
    volume: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[subprocess.Popen[bytes], str, Path]]:
    with serving(volume, tmp_path_factory.mktemp("attacked")) as started:
        yield started


@pytest.fixture
def http(server: Any) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(base_url=server[1], timeout=240, trust_env=False, headers=headers) as client:
        yield client


def connect(url: str) -> socket.socket:
    address = urlsplit(url)
    assert address.hostname and address.port
    return socket.create_connection((address.hostname, address.port), timeout=240)


def chat(text: str) -> dict[str, Any]:
    return {"model": "final", "messages": [{"role": "user", "content": text}]}


WORDS = [f"{number}".rjust(2000, "w") for number in range(900)]
PREDICT = "/v1/models/final:predict"
ATTACKS = [
    ("/completion", {"prompt": "A", "bad_words": ["w" * 15_000_000]}, 413),
    ("/completion", {"prompt": "A", "bad_words": ["w" * 1_900_000]}, 400),
    ("/completion", {"prompt": "A", "bad_words": WORDS}, 400),
    ("/completion", {"prompt": "A", "stop_sequence": "w" * 1_900_000}, 400),
    ("/v1/completions", {"model": "final", "prompt": "A", "stop": ["w" * 1_900_000]}, 400),
    ("/v1/completions", {"model": "final", "prompt": [[1]] * 400_000}, 400),
    ("/v1/completions", {"model": "final", "prompt": [1] * 600_000}, 400),
    ("/v1/chat/completions", chat("w" * 1_900_000), 400),
    ("/v1/chat/completions", chat("for ever"), 400),
    (PREDICT, {"instances": [""] * 600_000}, 400),
    (PREDICT, {"instances": ["w" * 30_000] * 60}, 400),
    ("/v2/models/final/infer", {"inputs": [{"data": [[]] * 600_000}]}, 400),
]


@pytest.mark.parametrize(("path", "body", "status"), ATTACKS)
def test_health_is_answered_while_an_attack_is_read(
    http: httpx.Client, server: Any, path: str, body: dict[str, Any], status: int
) -> None:
    answered: list[httpx.Response] = []
    attack = threading.Thread(target=lambda: answered.append(http.post(path, json=body)))
    seconds = []
    with httpx.Client(base_url=server[1], timeout=240, trust_env=False) as other:
        attack.start()
        while not answered:
            begin = time.monotonic()
            for route in ("live", "ready"):
                assert other.get(f"/v2/health/{route}").status_code == 200
            seconds.append(time.monotonic() - begin)
    attack.join()
    assert answered[0].status_code == status
    assert answered[0].json()["error"]
    if body.get("messages") == chat("for ever")["messages"]:  # seconds pass, and nobody waits
        assert len(seconds) > 3


def test_an_endless_template_ends_and_others_are_answered_meanwhile(http: httpx.Client) -> None:
    answered: list[httpx.Response] = []
    path, endless = "/v1/chat/completions", chat("for ever")
    attack = threading.Thread(target=lambda: answered.append(http.post(path, json=endless)))
    attack.start()
    asked = 0
    while not answered:
        done = http.post("/completion", json={"prompt": "A", "max_new_tokens": 1})
        assert done.status_code == 200
        asked += 1
    attack.join()
    assert asked > 1
    assert "longer than 3 seconds to read" in answered[0].json()["error"]["message"]


def test_headers_without_end_are_refused_and_not_kept(server: Any) -> None:
    before = psutil.Process(server[0].pid).memory_info().rss
    with connect(server[1]) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        with contextlib.suppress(OSError):  # it has stopped reading
            for number in range(3000):
                client.sendall(b"X-%d: %s\r\n" % (number, b"x" * 10_000))
    assert psutil.Process(server[0].pid).memory_info().rss - before < 20 * 2**20
    with connect(server[1]) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 40_000)
        assert client.recv(65536).startswith(b"HTTP/1.1 431 ")


HEAD = f"POST /completion HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"


@pytest.mark.parametrize(
    ("begin", "drop", "answer"),
    [
        (b"", b"", b""),  # says nothing: closed without a word
        (b"GET / HT", b"", b"HTTP/1.1 408 "),
        (b"GET / HTTP/1.1\r\n", b"X: 1\r\n", b"HTTP/1.1 408 "),  # a header now and then
        (HEAD.encode() + b"Content-Length: 99\r\n\r\n", b"", b"HTTP/1.1 408 "),
        (HEAD.encode() + b"Content-Length: 9999\r\n\r\n", b" ", b"HTTP/1.1 408 "),
        (HEAD.encode() + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n", b"HTTP/1.1 408 "),
    ],
)
def test_a_slow_client_is_let_go(server: Any, begin: bytes, drop: bytes, answer: bytes) -> None:
    with connect(server[1]) as client:
        client.sendall(begin)
        client.settimeout(0.1)
        deadline, got = time.monotonic() + 240, None
        while got is None:
            assert time.monotonic() < deadline, "it is waited for without end"
            try:
                got = client.recv(65536)
            except TimeoutError:
                client.sendall(drop)
        assert got.startswith(answer)
        assert answer or not got


KEYLESS = HEAD.replace(KEY, "wrong").encode()
LARGE = b"Content-Length: 15000000\r\n\r\n"


@pytest.mark.parametrize(
    ("begin", "answer"),
    [
        (HEAD.encode() + LARGE, b"HTTP/1.1 413 "),
        (HEAD.encode() + b"Transfer-Encoding: chunked\r\n\r\ne4e1c0\r\n", b"HTTP/1.1 413 "),
        (KEYLESS + LARGE, b"HTTP/1.1 401 "),
        (KEYLESS.replace(b"localhost", b"evil.example") + LARGE, b"HTTP/1.1 403 "),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ", b"HTTP/1.1 431 "),
    ],
)
def test_a_client_that_is_still_sending_gets_its_refusal(
    server: Any, begin: bytes, answer: bytes
) -> None:
    """It reads nothing before all is sent: a connection that is reset would lose the answer."""
    with connect(server[1]) as client:
        client.sendall(begin)
        for _ in range(150):
            client.sendall(b"x" * 100_000)
        got = client.recv(65536)
        assert got.startswith(answer)
        assert b"connection: close" in got.lower()
        while client.recv(65536):
            pass  # to the end, and no reset


@pytest.mark.parametrize("piece", [b"x" * 2**20, b"x"])
@pytest.mark.parametrize("begin", [HEAD.encode(), HEAD.replace("POST", "OPTIONS").encode()])
def test_a_refused_client_that_sends_without_end_is_let_go(
    server: Any, begin: bytes, piece: bytes
) -> None:
    preflight = f"Origin: {ORIGIN}\r\nAccess-Control-Request-Method: POST\r\n".encode()
    with connect(server[1]) as client:
        client.sendall(begin + preflight + b"Content-Length: 99999999999\r\n\r\n")
        with pytest.raises(ConnectionError):
            for _ in range(4000):
                client.sendall(piece)
                time.sleep(0.01)


def test_an_idle_crowd_does_not_keep_others_out(server: Any) -> None:
    limit = "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    mine = int(subprocess.run([sys.executable, "-c", limit], capture_output=True).stdout)
    with contextlib.ExitStack() as held:
        for _ in range(min(1500, mine - 300)):
            held.enter_context(connect(server[1]))
        with httpx.Client(base_url=server[1], timeout=240, trust_env=False) as client:
            assert client.get("/v2/health/live").status_code == 200


@pytest.mark.parametrize("path", ["/v1/models", "/v2", "/v2/models/final", "/v1/models/final"])
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": KEY},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": f"Bearer {KEY}x"},
        {"Authorization": f"Bearer {KEY[:-1]}"},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer \xff"},
    ],
)
def test_without_the_key_nothing_is_told(server: Any, path: str, headers: dict[str, str]) -> None:
    encoded = {name: value.encode("latin-1") for name, value in headers.items()}
    refused = httpx.get(f"{server[1]}{path}", headers=encoded, trust_env=False)
    assert refused.status_code == 401
    assert refused.headers["WWW-Authenticate"] == "Bearer"
    assert "final" not in refused.text
    post = httpx.post(f"{server[1]}/completion", content=b"{", headers=encoded, trust_env=False)
    assert post.status_code == 401


def test_health_and_metrics_need_no_key_and_all_else_answers_with_it(
    server: Any, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in ("/", "/metrics", "/v2/health/live", "/v2/health/ready"):
        assert httpx.get(f"{server[1]}{path}", trust_env=False).status_code == 200
    assert http.get("/v1/models").json()["models"] == ["final"]
    address = Address(server[1], api_key_variable=VARIABLE)
    with pytest.raises(NoAnswerError, match=f"not set .got '{VARIABLE}'"):
        service_client.ask(address, "The sheriff", max_tokens=3)
    monkeypatch.setenv(VARIABLE, "wrong")
    with pytest.raises(NoAnswerError, match="answered 401: the API key is missing or wrong"):
        service_client.ask(address, "The sheriff", max_tokens=3)
    monkeypatch.setenv(VARIABLE, KEY)
    assert service_client.ask(address, "The sheriff", max_tokens=3)
    assert list(service_client.stream(address, "The sheriff", max_tokens=3))
    command = service_client.curl_command(address, "it's noon", max_new_tokens=3)
    assert KEY not in command
    done = subprocess.run(["sh", "-c", command + " -s"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["predictions"][0][0]["generated_text"].startswith("it's noon")


def test_the_key_is_nowhere_to_be_read(server: Any, http: httpx.Client) -> None:
    process, _, log = server
    http.post("/completion", content=b"{")
    http.post("/v1/completions", json={"model": KEY[::-1]})
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    assert not any(KEY in argument for one in family for argument in one.cmdline())
    written = [path for path in log.parent.rglob("*") if path.is_file()]
    assert log in written
    assert not any(KEY in path.read_text() for path in written)
    assert KEY not in http.get("/metrics").text


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "localhost.evil.example", "10.0.0.1", "[::2]:80"]
)
def test_another_host_is_refused_on_loopback(server: Any, http: httpx.Client, host: str) -> None:
    for path in ("/v1/models", "/v2/health/ready", "/metrics"):
        refused = http.get(path, headers={"Host": host})
        assert refused.status_code == 403
        assert "localhost" in refused.text


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.0.0.1:99", "[::1]:80", "127.9.9.9"]
)
def test_loopback_is_served_by_all_its_names(http: httpx.Client, host: str) -> None:
    assert http.get("/v1/models", headers={"Host": host}).status_code == 200


def test_only_named_pages_may_ask(server: Any, http: httpx.Client) -> None:
    ask = {"Access-Control-Request-Method": "POST"}
    body = {"prompt": "A", "max_new_tokens": 1}
    for origin in ("https://evil.example", "null", "https://example.org.evil.example"):
        preflight = http.options("/completion", headers={"Origin": origin, **ask})
        assert "Access-Control-Allow-Origin" not in preflight.headers
        refused = http.post("/completion", json=body, headers={"Origin": origin})
        assert refused.status_code == 403
        assert "cors_origins" in refused.text
    preflight = http.options("/completion", headers={"Origin": ORIGIN, **ask})
    assert preflight.headers["Access-Control-Allow-Origin"] == ORIGIN
    allowed = http.post("/completion", json=body, headers={"Origin": ORIGIN})
    assert (allowed.status_code, allowed.headers["Access-Control-Allow-Origin"]) == (200, ORIGIN)


@pytest.mark.parametrize("verb", ["load", "unload"])
def test_no_client_can_unload_the_model(http: httpx.Client, verb: str) -> None:
    assert http.post(f"/v2/repository/models/final/{verb}").status_code == 404
    assert http.post("/v2/repository/index").status_code == 404
    assert http.get("/v2/health/ready").json() == {"ready": True}
    assert http.get("/v2/models/final/ready").json() == {"name": "final", "ready": True}


def test_sigterm_ends_a_server_under_attack(server: Any, http: httpx.Client) -> None:
    """The last of this file: it ends the server that the others ask."""
    process, url, _ = server
    children = psutil.Process(process.pid).children(recursive=True)
    attacks = [threading.Thread(target=_ignoring_the_end, args=[http]) for _ in range(6)]
    for attack in attacks:
        attack.start()
    with connect(url) as slow:
        slow.sendall(HEAD.encode() + b"Content-Length: 9999\r\n\r\n")
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(OSError):
            while process.poll() is None:
                slow.sendall(b" ")
                time.sleep(0.05)
    assert process.wait(timeout=240) == 0
    for attack in attacks:
        attack.join()
    assert not any(child.is_running() for child in children)


def _ignoring_the_end(http: httpx.Client) -> None:
    with contextlib.suppress(httpx.TransportError):
        http.post("/v1/chat/completions", json=chat("for ever"))
