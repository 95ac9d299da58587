"""Read a request's body up to a limit, and stop working when its client has gone.

A client that stops in the middle of its body is not waited for: a server that is told to
stop would have to wait for it as for an answer under way.
"""

import asyncio
import json
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

PIECE_SECONDS = 20.0  # without a byte of a body that is not whole


class HangUp:
    """ASGI middleware: the route's task is cancelled when the client disconnects."""

    def __init__(
        self, app: ASGIApp, max_body_bytes: int, problem_of: Callable[[str, bytes], str]
    ) -> None:
        self.app = app
        self.problem_of = problem_of  # of a body that is not to be looked at further
        self.max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            body = await self._read(receive)
        except TimeoutError:
            error = f"the body stopped coming for {PIECE_SECONDS:g} seconds. Send it again."
            await _refuse_body(send, 408, error)
            return
        if body is None:
            limit = self.max_body_bytes
            error = f"the body is too large. A request may have {limit} bytes. Send less."
            await _refuse_body(send, 413, error)
            return
        if isinstance(body, _Gone):
            return
        if problem := self.problem_of(scope["path"], body):
            await _refuse_body(send, 400, problem)
            return
        route = asyncio.create_task(self._route(scope, _replay(body), send))
        leaving = asyncio.create_task(_until_gone(receive))
        try:
            await asyncio.wait({route, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not route.done():
                route.cancel()
                await asyncio.wait({route})
            if not route.cancelled():
                route.result()  # raises what the route raised
        finally:
            leaving.cancel()

    async def _route(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)

    async def _read(self, receive: Receive) -> "bytes | _Gone | None":
        """The whole body; None where it is larger than allowed.

        Raises:
            TimeoutError: It stopped coming.
        """
        pieces, size = [], 0
        while True:
            async with asyncio.timeout(PIECE_SECONDS):
                message = await receive()
            if message["type"] == "http.disconnect":
                return _Gone()
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
            if size > self.max_body_bytes:
                return None
            if not message.get("more_body"):
                return b"".join(pieces)


class _Gone:
    """The client left before it had said what it wants."""


def _replay(body: bytes) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        # Leaving is dealt with here, so nobody inside is told of it.
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    return receive


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _refuse_body(send: Send, status: int, error: str) -> None:
    content = json.dumps({"error": error}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})
