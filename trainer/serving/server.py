"""The server: Starlette's routes behind the limits and checks of every request, under uvicorn.

    HTTP limits -> who may ask -> the body, within limits -> the route -> a reader -> the engine

It listens on a socket of our own, and takes the signals itself.
"""

import contextlib
import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from trainer.contract.errors import EXIT_FAILED
from trainer.serving.access import Access, is_loopback
from trainer.serving.api.bodies import ApiError
from trainer.serving.api.disconnects import HangUp
from trainer.serving.engine.metrics import register
from trainer.serving.errors_as_json import answer_error
from trainer.serving.health import Health
from trainer.serving.http_limits import (
    HEAD_BYTES,
    KEEP_SECONDS,
    LimitedProtocol,
    raise_descriptor_limit,
)
from trainer.serving.readers import ReaderError
from trainer.serving.routes import routes
from trainer.serving.service import Service

UNREAD_SECONDS = 60.0  # that a client may take nothing of what was sent to it
LAST_WORDS_SECONDS = 5  # for an answer that ends by the time limit of requests to be sent
ENDING_SECONDS = 20  # for the process to end after its last answer


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        OSError: The address is taken or not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # of Linux; each connection has it from here
        milliseconds = int(1000 * UNREAD_SECONDS)
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
    listening.bind((host, port))
    listening.listen(1024)
    return listening


def serve(
    service: Service,
    listening: socket.socket,
    on_started: Callable[[], None],
    *,
    api_key: str = "",
    origins: Sequence[str] = (),
) -> None:
    """Answer requests until SIGTERM or SIGINT, then finish those that are running.

    Nobody may be there to kill a server that was replaced, so it ends by itself.

    Args:
        service: What is served; its engine runs.
        listening: See `listen`.
        on_started: Called once a first request was answered and others are accepted.
        api_key: What clients must send; empty: nothing.
        origins: Web origins whose pages may ask.
    """
    raise_descriptor_limit()
    register(service.engine)
    health = Health(service)
    on_loopback = is_loopback(str(listening.getsockname()[0]))
    app = _app(service, health, api_key, origins, on_loopback)
    server = _Server(_config(app, service), service, health, on_started)
    service.engine.on_failure = server.stop
    service.readers.on_failure = server.stop
    with _stopped_by_signals(server):
        server.run(sockets=[listening])


def _app(
    service: Service, health: Health, api_key: str, origins: Sequence[str], on_loopback: bool
) -> Starlette:
    cors = Middleware(
        CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"]
    )
    middleware = [
        *([cors] if origins else []),
        Middleware(Access, api_key=api_key, origins=origins, on_loopback=on_loopback),
        Middleware(HangUp, service.model.max_body_bytes, service.readers.deadlines),
    ]
    handled = (ApiError, ReaderError, HTTPException, Exception)
    handlers = dict.fromkeys(handled, answer_error)
    return Starlette(
        routes=routes(service, health), middleware=middleware, exception_handlers=handlers
    )


def _config(app: Starlette, service: Service) -> uvicorn.Config:
    for name in ("uvicorn.access", "uvicorn.error"):
        # Warnings of uvicorn are about what clients send; errors are stack traces.
        logging.getLogger(name).setLevel(logging.ERROR)
    return uvicorn.Config(
        app,
        http=LimitedProtocol,
        h11_max_incomplete_event_size=HEAD_BYTES,
        timeout_keep_alive=KEEP_SECONDS,
        timeout_graceful_shutdown=math.ceil(service.engine.limits.request_seconds)
        + LAST_WORDS_SECONDS,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
    )


class _Server(uvicorn.Server):
    """uvicorn that says when it has started and leaves the signals to us."""

    def __init__(
        self,
        config: uvicorn.Config,
        service: Service,
        health: Health,
        on_started: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._readers = service.readers
        self._health = health
        self._on_started = on_started

    def stop(self) -> None:
        if not self.should_exit:
            self._end_at_last()
        self.should_exit = True

    def _end_at_last(self) -> None:
        """Have the process end where what is running hangs: a forward pass, or a thread."""
        assert self.config.timeout_graceful_shutdown is not None
        seconds = self.config.timeout_graceful_shutdown + ENDING_SECONDS
        last = threading.Timer(seconds, os._exit, [EXIT_FAILED])
        last.daemon = True
        last.start()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        await self._health.first_answer()
        self._on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._readers.deadlines.stop()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn raises the signal again when it is done, and the step would seem interrupted.
        yield


@contextlib.contextmanager
def _stopped_by_signals(server: _Server) -> Iterator[None]:
    def stop(signum: int, frame: FrameType | None) -> None:
        server.stop()
        # The reader of what we print may be gone, or the volume of the log be full; an error here
        # would break off what is running.
        with contextlib.suppress(OSError):
            print(f"{signal.Signals(signum).name}: finishing what is running", flush=True)

    before = {s: signal.signal(s, stop) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
