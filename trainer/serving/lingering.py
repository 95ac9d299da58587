"""A transport whose end loses no answer: it reads on for a while before it closes.

A system that closes a socket with bytes that nobody has read resets the connection, and a client
that is reset throws away an answer that it has not read yet. So a server that refuses a body
first closes its own direction, drops what still comes, and closes when the client has, or
when the client has sent too much or waited too long.
Source: RFC 9112, section 9.6.
"""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

LINGER_SECONDS = 10.0  # for a client that neither reads the answer nor closes
LINGER_BYTES = 64 * 2**20  # that are dropped of one connection
STOPPING_SECONDS = 1.0  # instead, of a server that is to stop


class LingeringTransport(asyncio.Transport):
    """A socket's transport for what uvicorn does with it.

    Args:
        transport: The socket's own.
        loop: Its event loop.
        is_sending: Whether the client may still be sending what nobody will read.
    """

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        is_sending: Callable[[], bool],
    ) -> None:
        super().__init__()
        self.linger_seconds = LINGER_SECONDS
        self._transport = transport
        self._loop = loop
        self._is_sending = is_sending
        self._timer: asyncio.TimerHandle | None = None
        self._dropped_bytes = 0

    @property
    def is_lingering(self) -> bool:
        """Whether the answer was sent, and what comes is dropped until the connection ends."""
        return self._timer is not None

    def close(self) -> None:
        """Close, and linger first where the client may be sending."""
        if self.is_closing():
            return
        if not self._is_sending():
            self._transport.close()
            return
        self._timer = self._loop.call_later(self.linger_seconds, self.end)
        with contextlib.suppress(OSError):  # the client is gone already
            self._transport.write_eof()  # once what was written is sent
        self._transport.resume_reading()

    def drop(self, data: bytes) -> None:
        """Take bytes that came while it lingers."""
        self._dropped_bytes += len(data)
        if self._dropped_bytes > LINGER_BYTES:
            self.end()

    def end(self) -> None:
        """Close now."""
        if self._timer is not None:
            self._timer.cancel()
        self._transport.close()

    def is_closing(self) -> bool:
        return self.is_lingering or self._transport.is_closing()

    def write(self, data: "bytes | bytearray | memoryview[Any]") -> None:
        if not self.is_lingering:
            self._transport.write(data)

    def pause_reading(self) -> None:
        if not self.is_lingering:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)
