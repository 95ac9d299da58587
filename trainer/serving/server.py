"""kserve's model server with our routes on the same app, on a socket of our own.

Of kserve's are V1, V2, health and metrics; `kserve.ModelServer.start` itself listens on
every interface, does not tell which port it got and takes the signals, so its parts
are put together here.
"""

import contextlib
import logging
import math
import os
import signal
import socket
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import FastAPIDeprecationWarning, RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from kserve import ModelServer
from kserve.errors import InvalidInput
from kserve.model_server import app as kserve_app
from kserve.protocol.rest.server import RESTServer
from starlette.exceptions import HTTPException

from trainer.errors import EXIT_FAILED
from trainer.serving import infer_tensors
from trainer.serving.bodies import ApiError
from trainer.serving.engine_metrics import register
from trainer.serving.hang_up import HangUp
from trainer.serving.openai_api import openai_router
from trainer.serving.openai_format import error_body
from trainer.serving.reference_api import PredictModel, completion_router
from trainer.serving.service import Service

MAX_BODY_BYTES = 16 * 2**20
UNREAD_SECONDS = 60.0  # that a client may take nothing of what was sent to it
LAST_WORDS_SECONDS = 5  # for an answer that ends by the time limit of requests to be sent
ENDING_SECONDS = 20  # for the process to end after its last answer
OPENAI_PATHS = ("/v1/completions", "/v1/chat/", "/v1/models")


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


def serve(service: Service, listening: socket.socket, on_started: Callable[[], None]) -> None:
    """Answer requests until SIGTERM or SIGINT, then finish those under way.

    Nobody may be there to kill a server that was replaced, so it sees to its end by itself.

    Args:
        service: What is served; its engine runs.
        listening: See `listen`.
        on_started: Called once requests are taken.
    """
    server = _Server(_config(service), on_started)
    service.engine.on_failure = server.stop
    with _stopped_by_signals(server):
        server.run(sockets=[listening])


def _config(service: Service) -> uvicorn.Config:
    register(service.engine)
    models = ModelServer(enable_grpc=False, workers=1)
    models.register_model(PredictModel(service))
    # Ours come first: /v1/models answers OpenAI's clients and kserve's.
    kserve_app.include_router(openai_router(service))
    kserve_app.include_router(completion_router(service))
    rest = RESTServer(
        "kserve.model_server:app",
        models.dataplane,
        models.model_repository_extension,
        http_port=0,
        grace_period=math.ceil(service.engine.limits.request_seconds) + LAST_WORDS_SECONDS,
    )
    rest.create_application()
    _handle_errors(kserve_app)
    # As the reference had it: the API is called from pages in browsers.
    kserve_app.add_middleware(
        CORSMiddleware, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"]
    )
    kserve_app.add_middleware(
        HangUp, max_body_bytes=MAX_BODY_BYTES, problem_of=infer_tensors.problem_of
    )
    _quiet_logs()
    return rest.config


def _quiet_logs() -> None:
    """Leave what is worth reading: kserve alone logs three lines for each request."""
    for name in ("kserve", "kserve.trace", "uvicorn.access", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # kserve 0.21 answers with a class that fastapi 0.150 deprecates, and is told so each time.
    warnings.filterwarnings("ignore", category=FastAPIDeprecationWarning)


class _Server(uvicorn.Server):
    """uvicorn that says when it has started and leaves the signals to us."""

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started = on_started

    def stop(self) -> None:
        if not self.should_exit:
            self._end_at_last()
        self.should_exit = True

    def _end_at_last(self) -> None:
        """Have the process end where what is under way hangs: a forward pass, or a thread."""
        assert self.config.timeout_graceful_shutdown is not None
        seconds = self.config.timeout_graceful_shutdown + ENDING_SECONDS
        last = threading.Timer(seconds, os._exit, [EXIT_FAILED])
        last.daemon = True
        last.start()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_started()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn raises the signal again when it is done, and the step would seem interrupted.
        yield


@contextlib.contextmanager
def _stopped_by_signals(server: _Server) -> Iterator[None]:
    def stop(signum: int, frame: FrameType | None) -> None:
        server.stop()
        # Whoever read what we print may be gone, or the volume of the log be full; an error here
        # would break off what is under way.
        with contextlib.suppress(OSError):
            print(f"{signal.Signals(signum).name}: finishing what is under way", flush=True)

    before = {s: signal.signal(s, stop) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _handle_errors(app: FastAPI) -> None:
    """Every error as JSON: OpenAI's form on its paths, `{"error": sentence}` elsewhere."""

    def respond(request: Request, error: ApiError) -> JSONResponse:
        openai = request.url.path.startswith(OPENAI_PATHS) and ":" not in request.url.path
        body = error_body(error) if openai else error.message
        return JSONResponse({"error": body}, status_code=error.status, headers=error.headers)

    async def api_error(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        return respond(request, error)

    async def invalid_input(request: Request, error: Exception) -> JSONResponse:
        return respond(request, ApiError(400, str(error)))

    async def not_of_v2(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return respond(request, ApiError(400, _problem_of_v2(error.errors()[0])))

    async def no_route(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        message = f"{request.method} {request.url.path}: {error.detail}."
        return respond(request, ApiError(error.status_code, message))

    async def failed(request: Request, error: Exception) -> JSONResponse:
        # Starlette raises it again behind this answer, and uvicorn logs the stack trace.
        return respond(request, ApiError(500, "the server failed. Its log says why."))

    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(InvalidInput, invalid_input)
    app.add_exception_handler(RequestValidationError, not_of_v2)
    app.add_exception_handler(HTTPException, no_route)
    app.add_exception_handler(Exception, failed)


def _problem_of_v2(detail: Mapping[str, Any]) -> str:
    """What kserve's own routes find wrong with a body: ("body", "InferenceRequest", "inputs")."""
    _, *place = detail["loc"]
    name = ".".join(str(part) for part in place if part != "InferenceRequest") or "the body"
    if detail["type"] == "json_invalid":
        return f"the body is not JSON ({detail['ctx']['error']})."
    return f"{name}: {detail['msg']}."
