"""Have requests read by other processes, with a time limit that stops them.

Nothing that a client sends is parsed, validated, put through a chat template or encoded in the
server's own process, so health and all other clients are answered meanwhile.
"""

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Mapping
from typing import Any

from trainer.serving.api.bodies import ApiError
from trainer.serving.deadlines import Deadlines
from trainer.serving.reader_process import BEGIN, END, LENGTH, ORDER, Messages, Read, fork_nursery

READ_SECONDS = 10.0  # for one request; the longest prompt of a 128k context takes less than one
WAIT_SECONDS = 60.0  # until a reader is free
PIECE_BYTES = 2**20
logger = logging.getLogger(__name__)


class ReaderError(Exception):
    """Reading failed by a fault of ours; holds the reader's stack trace."""


class Readers:
    """Processes that read one request each at a time. Used from one event loop.

    Create it before any thread of the server starts: it forks.
    """

    def __init__(self, model: Any, read: Read, count: int = 0) -> None:
        self._orders, self._nursery = fork_nursery(model, read)
        self._messages = Messages(model)
        self._count = count or max(2, min(4, os.cpu_count() or 1))
        self._numbers = 0
        self._idle: asyncio.LifoQueue[_Reader] | None = None
        self.deadlines = Deadlines()
        self.failure: str | None = None
        self.on_failure: Callable[[], None] = lambda: None
        self.num_read = 0  # requests, those given up included

    async def read(self, kind: str, body: bytes, headers: Mapping[str, str]) -> Any:
        """What the reader made of the body.

        Raises:
            ApiError: The request is wrong, or takes too long or too much memory to read.
            ReaderError: The reader failed by a fault of ours.
        """
        reader = await self._free_reader()
        self.num_read += 1
        try:
            async with self.deadlines.within(READ_SECONDS):
                made = await reader.ask((kind, body, headers))
        except TimeoutError as error:
            self._replace(reader)
            raise ApiError(
                400,
                f"the request took longer than {READ_SECONDS:g} seconds to read, and was given up. "
                "Send shorter texts, or fewer.",
            ) from error
        except (ConnectionError, EOFError) as error:
            self._replace(reader)
            logger.error("a reader ended while it read a request for %s", kind)
            raise ApiError(413, "reading the request takes too much memory. Send less.") from error
        except BaseException:  # the client left: what the reader still does is of no use
            self._replace(reader)
            raise
        self._idle_readers.put_nowait(reader)
        if isinstance(made, str):
            raise ReaderError(made)
        if isinstance(made, ApiError):
            raise made
        return made

    def close(self) -> None:
        """End all readers."""
        self._orders.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._nursery, 0)

    async def _free_reader(self) -> "_Reader":
        try:
            async with self.deadlines.within(WAIT_SECONDS):
                return await self._idle_readers.get()
        except TimeoutError as error:
            raise ApiError(
                503,
                "the server is busy reading other requests. Ask again in a few seconds.",
                headers={"Retry-After": "2"},
            ) from error

    @property
    def _idle_readers(self) -> "asyncio.LifoQueue[_Reader]":
        if self._idle is None:
            self._idle = asyncio.LifoQueue()
            for _ in range(self._count):
                self._idle.put_nowait(self._begin())
        return self._idle

    def _begin(self) -> "_Reader":
        ours, theirs = socket.socketpair()
        self._numbers += 1
        with theirs:
            self._order(ORDER.pack(BEGIN, self._numbers), theirs.fileno())
        ours.setblocking(False)
        return _Reader(self._numbers, ours, self._messages)

    def _replace(self, reader: "_Reader") -> None:
        """Kill a reader, and begin another."""
        reader.connection.close()
        self._order(ORDER.pack(END, reader.number))
        self._idle_readers.put_nowait(self._begin())

    def _order(self, order: bytes, *descriptors: int) -> None:
        try:
            socket.send_fds(self._orders, [order], descriptors)
        except OSError as error:  # the nursery was killed, and there is no other way to read
            self.failure = f"the process that starts readers ended ({error.strerror})"
            self.on_failure()


class _Reader:
    """One reading process, as the server knows it."""

    def __init__(self, number: int, connection: socket.socket, messages: Messages) -> None:
        self.number = number
        self.connection = connection
        self._messages = messages

    async def ask(self, asked: tuple[str, bytes, Mapping[str, str]]) -> Any:
        """Send what was asked, and return what comes back.

        Raises:
            EOFError: The process ended.
        """
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self.connection, self._messages.pack(asked))
        (length,) = LENGTH.unpack(await self._receive(LENGTH.size))
        return self._messages.unpack(await self._receive(length))

    async def _receive(self, size: int) -> bytes:
        loop, data = asyncio.get_running_loop(), bytearray()
        while len(data) < size:
            piece = await loop.sock_recv(self.connection, min(size - len(data), PIECE_BYTES))
            if not piece:
                raise EOFError
            data += piece
        return bytes(data)
