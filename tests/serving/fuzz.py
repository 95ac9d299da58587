"""Send random requests to a server for as long as you like: `make fuzz-server MINUTES=60`.

Made from the schema of each route, with odd values in odd places, and by hand: broken HTTP. Ends
with 1 at an answer of 500 or above, a refusal that takes over ten seconds, or memory that grows.
"""

import argparse
import contextlib
import json
import random
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil

from infra.local.service import serving_for_a_while
from tests.serving import tiny_models
from tests.serving.test_any_json import GOOD, NASTY, PLACES, put

PATHS = {
    "completions": "/v1/completions",
    "chat": "/v1/chat/completions",
    "completion": "/completion",
    "predict": "/v1/models/final:predict",
    "infer": "/v2/models/final/infer",
}
SLOW_SECONDS = 10.0  # of a request that is refused; the others wait for the model
ANSWER_SECONDS = 300.0
GROWTH_BYTES = 300 * 2**20
WARM_REQUESTS = 500


def main() -> int:
    parser = argparse.ArgumentParser(description="Fuzz the server.")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        volume = Path(place)
        tiny_models.save(volume / "x/final", chat_template=tiny_models.CHAT_TEMPLATE)
        with serving_for_a_while(volume, "x/final") as address:
            return fuzz(address.url, random.Random(given.seed), 60 * given.minutes)


def fuzz(url: str, rng: random.Random, seconds: float) -> int:
    """Fuzz the server at `url`; the exit code."""
    deadline, statuses, worst, problems = time.monotonic() + seconds, {}, 0.0, []
    before = None
    with httpx.Client(base_url=url, timeout=ANSWER_SECONDS, trust_env=False) as client:
        while time.monotonic() < deadline and not problems:
            if rng.random() < 0.05:
                send_broken(url, rng)
                continue
            path, body, headers = made_request(rng)
            begin = time.monotonic()
            answer = client.post(path, content=body, headers=headers)
            worst = max(worst, time.monotonic() - begin)
            statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
            most = ANSWER_SECONDS if answer.status_code == 200 else SLOW_SECONDS
            if answer.status_code >= 500 or time.monotonic() - begin > most:
                problems.append(f"{answer.status_code} for {path} {body[:2000]!r}")
            if sum(statuses.values()) == WARM_REQUESTS:
                before = resident_bytes(url)
    grown = 0 if before is None else resident_bytes(url) - before
    if grown > GROWTH_BYTES:
        problems.append(f"memory grew by {grown / 2**20:.0f} MiB")
    print(f"requests by status: {statuses}; longest: {worst:.2f} s; grown: {grown / 2**20:.0f} MiB")
    print("\n".join(problems) or "no fault found")
    return 1 if problems else 0


def made_request(rng: random.Random) -> tuple[str, bytes, dict[str, str]]:
    """A request that is right but for one to three fields, and sometimes for a byte."""
    kind = rng.choice(list(GOOD))
    body: Any = GOOD[kind]
    if kind in ("completions", "chat"):
        body = {**body, "max_tokens": 3}
    for _, place in rng.sample([p for p in PLACES if p[0] == kind], rng.choice([1, 1, 2, 3])):
        with contextlib.suppress(AttributeError, IndexError, TypeError):  # its place is gone
            body = put(body, place, any_value(rng))
    data = json.dumps(body).encode()
    if rng.random() < 0.1:
        place = rng.randrange(len(data))
        data = data[:place] + rng.randbytes(rng.randrange(3)) + data[place + 1 :]
    headers = {}
    if rng.random() < 0.1:
        size = rng.choice(["", "-1", "9" * 50, str(rng.randrange(len(data) + 9))])
        headers["Inference-Header-Content-Length"] = size
    return PATHS[kind], data, headers


def any_value(rng: random.Random) -> Any:
    plain = [rng.randrange(-3, 70), rng.random() * 3, rng.choice("abc") * rng.randrange(40)]
    return rng.choice(
        [None, True, *plain, rng.choice(NASTY), rng.choice(NASTY), [rng.choice(NASTY)]]
    )


def send_broken(url: str, rng: random.Random) -> None:
    """What is no HTTP, or ends in the middle."""
    address = urlsplit(url)
    good = b"POST /completion HTTP/1.1\r\nHost: localhost\r\nContent-Length: 15\r\n\r\n"
    text = good + b'{"prompt": "A"}'
    choices = [
        text[: rng.randrange(len(text))],
        rng.randbytes(rng.randrange(200)) + b"\r\n\r\n",
        text.replace(b"15", b"15\r\nTransfer-Encoding: chunked"),
        b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * rng.randrange(60_000),
        text * rng.randrange(1, 30),
    ]
    with (
        contextlib.suppress(OSError),
        socket.create_connection((address.hostname, address.port), timeout=5) as client,
    ):
        client.sendall(rng.choice(choices))
        if rng.random() < 0.5:
            client.shutdown(socket.SHUT_WR)
            client.recv(4096)


def resident_bytes(url: str) -> int:
    """Memory of the server that listens at `url`, and of its readers."""
    port = urlsplit(url).port
    for found in psutil.net_connections("tcp"):
        if found.status == psutil.CONN_LISTEN and found.laddr.port == port and found.pid:
            server = psutil.Process(found.pid)
            family = [server, *server.children(recursive=True)]
            return sum(one.memory_info().rss for one in family if one.is_running())
    raise AssertionError(f"no server listens on {port}")


if __name__ == "__main__":
    sys.exit(main())
