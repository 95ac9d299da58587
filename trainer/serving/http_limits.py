"""HTTP/1.1 with limits: on headers (431), on the time they take (408), on connections.

uvicorn's parser in C has no limit on headers. Its one in Python, h11, has a limit, but uvicorn
answers 400 to what goes beyond it, and waits for the first request of a connection for ever.
"""

import asyncio
import contextlib
import json
import resource
import sys
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from trainer.serving.lingering import STOPPING_SECONDS, LingeringTransport

HEAD_BYTES = 32 * 1024  # of a request's line and headers
HEAD_SECONDS = 20.0  # from a connection's begin, or a request's first byte, to the headers' end
KEEP_SECONDS = 65  # that a connection may be idle between two requests
MAX_CONNECTIONS = 4096
SPARE_DESCRIPTORS = 128  # for files, readers and the engine


class LimitedProtocol(H11Protocol):
    """One connection."""

    transport: LingeringTransport

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(LingeringTransport(transport, self.loop, self._is_sending))
        if len(self.connections) > max_connections():
            _close_an_idle_one(self)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_awaiting_head()
        super().connection_lost(exc)
        self.transport.end()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_lingering:
            self.transport.drop(data)
        else:
            super().data_received(data)

    def on_response_complete(self) -> None:
        if self.conn.their_state is h11.SEND_BODY:  # uvicorn would drop the rest without end
            self.transport.close()
        super().on_response_complete()

    def shutdown(self) -> None:
        self.transport.linger_seconds = STOPPING_SECONDS
        if self.transport.is_lingering:
            self.transport.end()
        super().shutdown()

    def handle_events(self) -> None:
        super().handle_events()
        if self.transport.is_closing() or self.conn.their_state is not h11.IDLE:
            self._stop_awaiting_head()
        elif self._head_timer is None and self.conn.trailing_data[0]:
            self._await_head()  # the begin of a further request

    @property
    def is_idle(self) -> bool:
        """Whether no request is being received or answered."""
        idle = self.conn.their_state is h11.IDLE and self.conn.our_state is h11.IDLE
        return idle or self.transport.is_lingering

    def _is_sending(self) -> bool:
        """Whether bytes may come, or have come, that are not read."""
        unread = self.conn.their_state in (h11.SEND_BODY, h11.ERROR)
        return unread or bool(self.conn.trailing_data[0])

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _stop_awaiting_head(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        self._head_timer = None
        if self.transport.is_closing():
            return
        if self.conn.trailing_data[0]:
            self._refuse(408, f"the headers did not come within {HEAD_SECONDS:g} seconds.")
        else:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, or too long, with the status that h11 gives it."""
        error = sys.exc_info()[1]
        status = 400
        if isinstance(error, h11.RemoteProtocolError):
            status, msg = error.error_status_hint, f"the request is not HTTP/1.1 ({error})."
        if status == 431:
            msg = f"the headers are too long. They may have {HEAD_BYTES} bytes. Send less."
        self._refuse(status, msg)

    def _refuse(self, status: int, message: str) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps({"error": message}).encode()
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
            ]
            with contextlib.suppress(h11.LocalProtocolError):
                for event in (
                    h11.Response(status_code=status, headers=headers),
                    h11.Data(data=body),
                    h11.EndOfMessage(),
                ):
                    self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def max_connections() -> int:
    """As many as this process may have open, after `raise_descriptor_limit`."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MAX_CONNECTIONS if soft == resource.RLIM_INFINITY else soft - SPARE_DESCRIPTORS
    return max(1, min(MAX_CONNECTIONS, most))


def raise_descriptor_limit() -> None:
    """Allow this process the connections it may have: many systems begin with 1024 or fewer."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + SPARE_DESCRIPTORS
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def _close_an_idle_one(new: LimitedProtocol) -> None:
    """Make room: close a connection that says nothing, else the new one."""
    for other in new.connections:
        if isinstance(other, LimitedProtocol) and other is not new and other.is_idle:
            other.transport.end()
            return
    new.transport.end()
