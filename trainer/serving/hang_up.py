"""Read a request's body up to a limit, and stop working when its client has gone."""

import asyncio
import json

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HangUp:
    """ASGI middleware: the route's task is cancelled when the client disconnects."""

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = await self._read(receive)
        if body is None:
            await _refuse_body(send, self.max_body_bytes)
            return
        if isinstance(body, _Gone):
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
        """The whole body; None where it is larger than allowed."""
        pieces, size = [], 0
        while True:
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


async def _refuse_body(send: Send, limit: int) -> None:
    error = f"the body is too large. A request may have {limit} bytes. Send less."
    content = json.dumps({"error": error}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": content})
