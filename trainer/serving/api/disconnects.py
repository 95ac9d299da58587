"""Read a request's body within limits, and stop working when its client has gone.

A body that is too large is refused (413), one that comes too slowly too (408). All bodies together
have a limit as well: a thousand clients may send at once (503).
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trainer.serving.api.bodies import ApiError
from trainer.serving.deadlines import Deadlines
from trainer.serving.errors_as_json import error_response

PIECE_SECONDS = 20.0  # without a byte of a body that is not whole
BODY_SECONDS = 120.0  # until a body is whole
MAX_BODIES_BYTES = 256 * 2**20  # of all bodies that are held at a time
CLOSE = {"Connection": "close"}


class HangUp:
    """ASGI middleware: the route's task is cancelled when the client disconnects."""

    def __init__(self, app: ASGIApp, max_body_bytes: int, deadlines: Deadlines) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes
        self.deadlines = deadlines
        self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        pieces: list[bytes] = []
        try:
            is_whole = await self._read(scope, receive, pieces)
            if is_whole:
                await self._until_gone(scope, b"".join(pieces), receive, send)
        except ApiError as error:  # of the body: the routes answer theirs
            await error_response(scope["path"], error)(scope, receive, send)
        finally:
            self._held_bytes -= sum(map(len, pieces))

    async def _until_gone(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        route = asyncio.create_task(self._route(scope, _replay(body), send))
        leaving = asyncio.create_task(_gone(receive))
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

    async def _read(self, scope: Scope, receive: Receive, pieces: list[bytes]) -> bool:
        """Read the body into `pieces`; whether it is whole: the client may leave before.

        Raises:
            ApiError: It is too large, comes too slowly, or there is no room for it.
        """
        declared = Headers(scope=scope).get("content-length", "0")
        if int(declared) > self.max_body_bytes:  # h11 lets digits through, and not too many
            raise self._too_large()
        size = 0
        async with _in_time(self.deadlines, BODY_SECONDS):
            while True:
                async with _in_time(self.deadlines, PIECE_SECONDS):
                    message = await receive()
                if message["type"] == "http.disconnect":
                    return False
                pieces.append(message.get("body", b""))
                self._held_bytes += len(pieces[-1])
                size += len(pieces[-1])
                if size > self.max_body_bytes:
                    raise self._too_large()
                if self._held_bytes > MAX_BODIES_BYTES:
                    raise ApiError(
                        503,
                        "the server is receiving too much at once. Ask again in a few seconds.",
                        headers={"Retry-After": "2", **CLOSE},
                    )
                if not message.get("more_body"):
                    return True

    def _too_large(self) -> ApiError:
        return ApiError(
            413,
            f"the body is too large. A request may have {self.max_body_bytes} bytes, "
            "which is more than the model's context has a use for. Send less.",
            headers=CLOSE,
        )


@contextlib.asynccontextmanager
async def _in_time(deadlines: Deadlines, seconds: float) -> AsyncIterator[None]:
    try:
        async with deadlines.within(seconds):
            yield
    except TimeoutError as error:
        raise ApiError(
            408, "the body did not come in time. Send it again, faster.", headers=CLOSE
        ) from error


def _replay(body: bytes) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        # Leaving is dealt with here, so nobody inside is told of it.
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    return receive


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
