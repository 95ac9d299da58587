"""The processes in which requests are read: parsed, checked, put through templates, encoded.

    server --fork--> nursery --fork--> reader, reader, ...

A reader may be killed at any moment, because what it reads may keep it busy for ever. The nursery
is forked before the engine's thread starts and does nothing but fork readers, so a new one costs
milliseconds: the tokenizer is in its memory. All end with the server, even one killed by kill -9.
"""

import contextlib
import ctypes
import gc
import io
import os
import pickle
import resource
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from trainer.serving.api.bodies import ApiError

Read = Callable[[Any, str, bytes, Mapping[str, str]], Any]

READER_BYTES = 2**30  # of memory that reading one request may take beyond what is loaded
ORDER = struct.Struct("!cQ")  # begin (with a socket) or end, and the reader's number
BEGIN, END = b"b", b"e"
LENGTH = struct.Struct("!Q")  # of the message that follows
_PR_SET_PDEATHSIG = 1  # prctl(2)


def fork_nursery(model: Any, read: Read) -> tuple[socket.socket, int]:
    """Fork the process that forks readers; return a socket for its orders, and its id.

    It ends, and its readers with it, when the socket is closed.

    Args:
        model: What `read` is given first; `Messages` never sends it.
        read: Makes of a kind, a body and the headers what the routes continue with.
    """
    ours, theirs = socket.socketpair()
    server = os.getpid()
    sys.stdout.flush()
    if pid := os.fork():
        theirs.close()
        return ours, pid
    with contextlib.suppress(BaseException):
        ours.close()
        _begin_process(server)
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # of this fork: one text at a time
        gc.freeze()  # so that counting references copies as little as possible
        _run_nursery(theirs, model, read)
    os._exit(0)


def _begin_process(parent: int) -> None:
    """End with the parent, and leave the signals of a terminal or a group to it."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    with contextlib.suppress(AttributeError, OSError):  # where there is no prctl, sockets close
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def _run_nursery(orders: socket.socket, model: Any, read: Read) -> None:
    readers: dict[int, int] = {}  # process ids, by the server's numbers
    try:
        while (order := _next_order(orders)) is not None:
            kind, number, descriptors = order
            if kind == BEGIN:
                readers[number] = _fork_reader(orders, descriptors[0], model, read)
                os.close(descriptors[0])
            else:
                _end(readers.pop(number))
    finally:
        for pid in readers.values():
            _end(pid)


def _next_order(orders: socket.socket) -> tuple[bytes, int, list[int]] | None:
    data, descriptors, _, _ = socket.recv_fds(orders, ORDER.size, 1)
    while data and len(data) < ORDER.size:
        data += orders.recv(ORDER.size - len(data))
    if len(data) < ORDER.size:
        return None
    kind, number = ORDER.unpack(data)
    return kind, number, descriptors


def _end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _fork_reader(orders: socket.socket, descriptor: int, model: Any, read: Read) -> int:
    nursery = os.getpid()
    if pid := os.fork():
        return pid
    with contextlib.suppress(BaseException):
        orders.close()
        _begin_process(nursery)
        _limit_memory()
        _run_reader(socket.socket(fileno=descriptor), model, read)
    os._exit(0)


def _limit_memory() -> None:
    with contextlib.suppress(OSError, ValueError):  # not everywhere is there such a file
        with open("/proc/self/statm", encoding="ascii") as file:
            mapped = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        most = mapped + READER_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


def _run_reader(connection: socket.socket, model: Any, read: Read) -> None:
    messages = Messages(model)
    while (head := _receive(connection, LENGTH.size)) is not None:
        (length,) = LENGTH.unpack(head)
        message = _receive(connection, length)
        if message is None:
            return
        connection.sendall(messages.pack(_read(model, read, messages.unpack(message))))


def _receive(connection: socket.socket, size: int) -> bytes | None:
    """Exactly `size` bytes; None where the server has gone."""
    data = bytearray()
    while len(data) < size:
        piece = connection.recv(min(size - len(data), 2**20))
        if not piece:
            return None
        data += piece
    return bytes(data)


def _read(model: Any, read: Read, asked: tuple[str, bytes, Mapping[str, str]]) -> Any:
    """What was read, an ApiError, or the stack trace of a fault of ours as text."""
    try:
        return read(model, *asked)
    except ApiError as error:
        return error
    except MemoryError:
        return ApiError(413, "reading the request takes too much memory. Send less.")
    except Exception:  # noqa: BLE001 - it goes to the server's log, and the client gets an answer
        return traceback.format_exc()


class Messages:
    """What the server and a reader send each other: pickles in which the model is a reference."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def pack(self, message: Any) -> bytes:
        """The message with its length before it."""
        stream = io.BytesIO()
        stream.write(bytes(LENGTH.size))
        pickler = _Pickler(stream, protocol=pickle.HIGHEST_PROTOCOL)
        pickler.model = self._model
        pickler.dump(message)
        data = stream.getbuffer()
        LENGTH.pack_into(data, 0, len(data) - LENGTH.size)
        return bytes(data)

    def unpack(self, data: bytes) -> Any:
        """A message without its length; it comes from a process of ours."""
        unpickler = _Unpickler(io.BytesIO(data))
        unpickler.model = self._model
        return unpickler.load()


class _Pickler(pickle.Pickler):
    model: Any

    def persistent_id(self, obj: Any) -> str | None:
        return "model" if obj is self.model else None


class _Unpickler(pickle.Unpickler):
    model: Any

    def persistent_load(self, pid: Any) -> Any:
        return self.model
