"""The server as a process: start, ask, replace, stop."""

import contextlib
import json
import os
import re
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

from infra.local import server_process, service_client
from infra.local import service as local_service
from infra.local.server_process import ServiceError
from infra.local.service import Service


def test_ready_service_answers_and_streams_the_same_text(service: Service) -> None:
    asked = service_client.ask(service, "The sheriff", max_tokens=12, temperature=0)
    pieces = list(service_client.stream(service, "The sheriff", max_tokens=12, temperature=0))
    assert asked
    assert "".join(pieces) == asked
    assert len(pieces) > 1


def test_curl_command_gets_the_answer(service: Service) -> None:
    command = service_client.curl_command(service, 'it\'s "noon"', max_new_tokens=3)
    done = subprocess.run(["sh", "-c", command + " -s"], capture_output=True, text=True, check=True)
    (prediction,) = json.loads(done.stdout)["predictions"][0]
    assert prediction["generated_text"].startswith('it\'s "noon"')


def test_start_up_is_told_part_by_part(service: Service) -> None:
    log = Path(service.log).read_text()
    parts = dict(re.findall(r"^([a-z ]+): ([\d.]+) s$", log, re.MULTILINE))
    loaded = ["imports", "digests", "tokenizer", "weights"]
    assert list(parts) == [*loaded, "comparison with whole passes", "engine", "first token"]
    (whole,) = re.findall(r"^ready at \S+ after ([\d.]+) s$", log, re.MULTILINE)
    # The rest is what comes between: nothing that takes long is left out.
    assert float(whole) > sum(map(float, parts.values())) - 0.05


def test_running_service_is_found_by_its_record(service: Service, volume: Path) -> None:
    assert local_service.running(volume, "tales") == service


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "does not answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", "does not answer"),
        (b'HTTP/1.1 200 OK\r\n\r\ndata: {"choices": [{"text": "Du"}]}\n\n', "broke off"),
    ],
)
def test_a_service_that_breaks_off_is_told_as_that(answer: bytes, words: str) -> None:
    """A server may be killed at any moment: before it answers, or while it does."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer_once() -> None:
            with listening.accept()[0] as connection:
                asked = b""
                while b"Dust" not in asked:  # what is not read would reset the connection
                    asked += connection.recv(65536)
                connection.sendall(answer)

        served = threading.Thread(target=answer_once)
        served.start()
        address = service_client.Address(f"http://127.0.0.1:{listening.getsockname()[1]}")
        ask = service_client.ask if b"Length" in answer else service_client.stream
        with pytest.raises(service_client.NoAnswerError, match=words):
            list(ask(address, "Dust"))
        served.join()


def test_record_of_another_process_with_the_same_id_is_not_ours(
    service: Service, volume: Path, tmp_path: Path
) -> None:
    (tmp_path / "tales").mkdir()
    record = json.loads((volume / "tales/service.json").read_text())
    record["process_started"] = "1"
    (tmp_path / "tales/service.json").write_text(json.dumps(record))
    assert local_service.running(tmp_path, "tales") is None
    assert local_service.stop(tmp_path, "tales") is False
    assert local_service.running(volume, "tales") == service


def test_model_that_cannot_be_served_is_told_at_once_with_the_servers_reason(
    volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[float] = []
    wait = server_process.await_ready

    def noting_the_end(*args: Any) -> dict[str, Any]:
        try:
            return wait(*args)
        finally:
            ended.append(time.monotonic())

    monkeypatch.setattr(local_service, "await_ready", noting_the_end)
    with pytest.raises(ServiceError, match="model is not a folder on the volume") as caught:
        local_service.start(volume, "ghost", "ghost/final", timeout_seconds=240)
    assert time.monotonic() - ended[0] < server_process.GRACE_SECONDS, "waits for who has ended"
    assert caught.value.exit_code == 78
    assert not (volume / "ghost" / "service.json").exists()


@contextlib.contextmanager
def serving(volume: Path, folder: Path, changes: str, **more: Any) -> Iterator[tuple[Any, str]]:
    """A server process and its address, after `changes` to what it is made of."""
    ready, config = folder / "ready.json", folder / "config.json"
    given = {"volume": str(volume), "model": "tales/final", "ready_file": str(ready), **more}
    config.write_text(json.dumps(given))
    code = f"import runpy, sys\n{changes}\nrunpy.run_module('trainer', run_name='__main__')"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "serve", str(config)],
        env={**os.environ, "FINETUNE_TERMINATION_PATH": str(folder / "outcome.json")},
    )
    try:
        while not ready.exists():
            assert process.poll() is None
            time.sleep(0.05)
        yield process, json.loads(ready.read_text())["url"]
    finally:
        process.kill()
        process.wait()


def lines_of(url: str) -> Iterator[str]:
    """A long answer's server-sent events."""
    body = {"model": "final", "prompt": "The", "max_tokens": 200, "stream": True}
    body["logit_bias"] = {"0": -100}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=240) as response:
        yield from response.iter_lines()


def cpu_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


BEGUN = b"POST /completion HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n"
HELD_OPEN = (
    b"",
    BEGUN[:20],
    BEGUN + b'{"pro',
    b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n",
)


def test_sigterm_ends_the_server_with_exit_code_0_after_its_answers(
    volume: Path, tmp_path: Path
) -> None:
    """Clients that say nothing, or not all, while they hold their connection, don't keep it."""
    impatient = "import trainer.serving.api.disconnects as h; h.PIECE_SECONDS = 2.0"
    outcome = tmp_path / "outcome.json"
    with serving(volume, tmp_path, impatient) as (process, url), contextlib.ExitStack() as held:
        address = urlsplit(url)
        lines, clients = [], []
        for sent in HELD_OPEN:
            client = socket.create_connection((address.hostname, address.port))
            clients.append(held.enter_context(client))
            client.sendall(sent)
        for line in lines_of(url):
            lines.append(line)
            if len(lines) == 1:
                process.send_signal(signal.SIGTERM)
        assert "data: [DONE]" in lines[-2:]
        deadline = time.monotonic() + 240
        while not outcome.exists():
            assert time.monotonic() < deadline, "it waits for a client that says nothing"
            time.sleep(0.02)
        assert clients[2].recv(65536).startswith(b"HTTP/1.1 408 ")
        served = cpu_seconds(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        # Python would look through all of torch for garbage: a quarter of what starting took.
        assert usage.ru_utime + usage.ru_stime - served < 0.1 * served
    assert json.loads(outcome.read_text())["status"] == "done"


def test_a_server_that_hangs_as_it_stops_ends_by_itself(volume: Path, tmp_path: Path) -> None:
    """The process that replaced it is gone, so nobody would kill it."""
    hangs = (
        "import time, trainer.serving.engine.engine as e, trainer.serving.server as s\n"
        "s.LAST_WORDS_SECONDS = s.ENDING_SECONDS = 1\n"
        "e.Engine._answer = lambda engine: time.sleep(engine.under_way * 10_000)"
    )
    with serving(volume, tmp_path, hangs, request_seconds=1) as (process, url):
        address = urlsplit(url)
        with socket.create_connection((address.hostname, address.port)) as client:
            client.sendall(BEGUN.replace(b"99", b"15") + b'{"prompt": "A"}')
            while "sequences_under_way 1" not in httpx.get(f"{url}/metrics", timeout=240).text:
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=240) == 1


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="a setting of Linux")
def test_a_client_that_reads_nothing_is_let_go(volume: Path, tmp_path: Path) -> None:
    """It acknowledges every probe of its kernel's, so without a limit it would stay for ever."""
    impatient = (
        "import socket, trainer.serving.server as s\n"
        "s.UNREAD_SECONDS, listen = 1.0, s.listen\n"
        "def small(*address):\n"
        "    listening = listen(*address)\n"
        "    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)\n"
        "    return listening\n"
        "s.listen = small"
    )
    body = {"prompt": "The", "max_tokens": 200, "n": 8, "stream": True, "logprobs": 5}
    text = json.dumps({**body, "logit_bias": {"0": -100}, "model": "final"}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
    with serving(volume, tmp_path, impatient) as (process, url), socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((urlsplit(url).hostname, urlsplit(url).port))
        client.sendall(head % len(text) + text)
        mine, deadline = client.getsockname(), time.monotonic() + 240
        while any(c.pid == process.pid and c.raddr == mine for c in psutil.net_connections("tcp")):
            assert time.monotonic() < deadline, "its connection stays open"
            time.sleep(0.05)
        assert client.recv(100).startswith(b"HTTP/1.1 200 ")  # it was answered, and read nothing
        while "sequences_under_way 0" not in httpx.get(f"{url}/metrics", timeout=240).text:
            time.sleep(0.05)
