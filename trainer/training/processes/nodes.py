"""Several machines that train together: they meet, agree on what to do, and end together.

The first node's launcher hosts torchrun's store, a TCPStore at MASTER_ADDR:MASTER_PORT. There
the launchers meet, and their processes afterwards, as under torchrun's static rendezvous;
which node this is (FINETUNE_NODE_RANK) is the Job's completion index.

To start a node again is the Job controller's business. A node that loses another one ends
with an exit code that the Job does not count, its successor waits for the others, and all
continue from the newest checkpoint. So nothing here has to repair a group.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

from trainer.contract.errors import LostNodeError
from trainer.contract.events import say
from trainer.contract.json_text import parse_json

RANK_VARIABLE = "FINETUNE_NODE_RANK"
BEAT_SECONDS = 1.0
LOST_SECONDS = 60.0  # without a beat; a node whose power fails closes no connection
POLL_SECONDS = 0.1
FAREWELL_SECONDS = 30.0  # that the first node stays, for the others to see that all is done
LAST_WORDS_SECONDS = 3.0  # that it stays, for them to learn why it ended
TELL_SECONDS = 300.0
# Of a store whose host is gone or silent: torch's DistError is one; torch itself loads later.
STORE_ERROR = RuntimeError
DONE = "done"
STOPPED = "stopped"  # so begins what is said of an interruption


def node_rank() -> int:
    """Which node this is, from 0; of a run on one machine 0."""
    return int(os.environ.get(RANK_VARIABLE) or 0)


class Group:
    """The nodes of a run, as one of them sees them.

    Args:
        store: A client of the first node's store.
        rank: Which node this is.
        nodes: How many there are.
    """

    def __init__(self, store: Any, rank: int, nodes: int) -> None:
        self.rank, self.nodes = rank, nodes
        self.first = rank == 0
        self._store = store
        self._lost = ""
        self._joined: set[int] = set()
        self._ended: dict[int, str] = {}
        self._heard: dict[int, tuple[bytes, float]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="nodes", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise LostNodeError where another node has ended without being done, or is gone."""
        for rank, how in list(self._ended.items()):
            if how != DONE:
                raise LostNodeError(f"node {rank} ended: {how}")
        if self._lost:
            raise LostNodeError(self._lost)

    @property
    def broken(self) -> bool:
        """Whether another node has ended without being done, or is gone."""
        return bool(self._lost) or any(how != DONE for how in list(self._ended.values()))

    @property
    def stopped(self) -> bool:
        """Whether another node ended after saving, as all others then do."""
        return any(how.startswith(STOPPED) for how in list(self._ended.values()))

    def wait_for_all(self) -> None:
        """Return when every node has come."""
        others = set(range(self.nodes)) - {self.rank}
        told = time.monotonic() + BEAT_SECONDS + 5
        while missing := others - self._joined:
            self.check()
            if time.monotonic() >= told:
                told = time.monotonic() + TELL_SECONDS
                say(f"waits for {len(missing)} of {self.nodes} nodes: {sorted(missing)}")
            time.sleep(POLL_SECONDS)

    def agree(self, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What the first node makes, on all of them; plain JSON.

        Raises:
            LostNodeError: The first node could not make it.
        """
        if self.first:
            made = make()
            self._set("agreed", json.dumps(made))
            return made
        while not self._has("agreed"):
            self.check()
            time.sleep(POLL_SECONDS)
        return parse_json(self._store.get("agreed"))

    def wait_for_first(self) -> None:
        """Return when the first node is done: until then its successor may need this one."""
        while self._ended.get(0) != DONE:
            self.check()
            time.sleep(POLL_SECONDS)

    def settle(self) -> None:
        """Give the others time to say why they ended, or to be missed, before this one does."""
        deadline = time.monotonic() + LOST_SECONDS + 2 * BEAT_SECONDS
        while time.monotonic() < deadline:
            self.check()
            time.sleep(POLL_SECONDS)

    def leave(self, how: str) -> None:
        """Tell the others how this node ended; the first one stays until they know it is done."""
        with contextlib.suppress(LostNodeError):
            self._set(f"ended/{self.rank}", how)
        stay = (FAREWELL_SECONDS if how == DONE else LAST_WORDS_SECONDS) if self.first else 0.0
        deadline = time.monotonic() + stay
        while time.monotonic() < deadline and not self._lost:
            if len(self._ended) == self.nodes - 1:
                break
            time.sleep(POLL_SECONDS)
        self._stop.set()
        self._thread.join(timeout=2 * BEAT_SECONDS)

    def _beat(self) -> None:
        """Say that this node is alive, and look how the others are, beside the main thread."""
        others = [rank for rank in range(self.nodes) if rank != self.rank]
        keys = [f"{what}/{rank}" for what in ("beat", "joined", "ended") for rank in others]
        number = 0
        while not self._stop.wait(BEAT_SECONDS if number else 0):
            number += 1
            try:
                self._set(f"beat/{self.rank}", str(number))
                values = self._store.multi_get(keys)
            except (LostNodeError, STORE_ERROR) as error:
                self._lost = f"node 0 does not answer ({str(error).splitlines()[0]})"
                return
            count = len(others)
            columns = (values[:count], values[count : 2 * count], values[2 * count :])
            for rank, beat, joined, ended in zip(others, *columns, strict=True):
                if int(joined):
                    self._joined.add(rank)
                    self._look(rank, beat, int(joined), ended.decode())

    def _look(self, rank: int, beat: bytes, joined: int, ended: str) -> None:
        now = time.monotonic()
        before, since = self._heard.get(rank, (b"", now))
        self._heard[rank] = (beat, since if beat == before else now)
        if ended:
            self._ended[rank] = ended
        elif joined > 1:
            self._lost = f"node {rank} was started anew"
        elif beat == before and now - since > LOST_SECONDS:
            self._lost = f"node {rank} has not been heard of for {LOST_SECONDS:.0f} s"

    def _set(self, key: str, value: str) -> None:
        try:
            self._store.set(key, value)
        except STORE_ERROR as error:
            raise LostNodeError(f"node 0 does not answer ({error})") from error

    def _has(self, key: str) -> bool:
        try:
            return self._store.check([key])
        except STORE_ERROR as error:
            raise LostNodeError(f"node 0 does not answer ({error})") from error


@contextlib.contextmanager
def meet(nodes: int) -> Iterator[Group]:
    """The group of all nodes, once they are there; the others are told how this one ends.

    Raises:
        LostNodeError: The group broke up: all meet again when they are started again.
    """
    # A connection that breaks is told in one line, not by torch with a stack of C++ frames.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    rank = node_rank()
    store = _host(nodes) if rank == 0 else _join(rank)
    group = Group(store, rank, nodes)
    try:
        group.wait_for_all()
        yield group
    except BaseException as error:  # a signal, too: the other nodes are told
        said = str(error).splitlines()
        group.leave(said[0] if said else type(error).__name__)
        raise
    group.leave(DONE)


def _host(nodes: int) -> Any:
    """The first node's store, with a place for what each node says."""
    from torch.distributed import PrefixStore, TCPStore

    _, port = _place()
    _wait_for_port(port)
    store = TCPStore("127.0.0.1", port, None, True, timeout=_TIMEOUT, wait_for_workers=False)
    prefixed = PrefixStore("nodes", store)
    for rank in range(nodes):
        prefixed.set(f"beat/{rank}", "0")
        prefixed.set(f"ended/{rank}", "")
        prefixed.add(f"joined/{rank}", 0)
    prefixed.add("joined/0", 1)
    prefixed.set("open", "1")
    return prefixed


def _wait_for_port(port: int) -> None:
    """Return when nobody listens there: processes of a killed node go a moment after it."""
    deadline = time.monotonic() + LOST_SECONDS
    while time.monotonic() < deadline:
        try:
            socket.create_server(("", port)).close()
            return
        except OSError:
            time.sleep(POLL_SECONDS)


def _join(rank: int) -> Any:
    """A client of the first node's store, as soon as there is one that knows no earlier us."""
    from torch.distributed import PrefixStore, TCPStore

    address, port = _place()
    told = time.monotonic()
    while True:
        if time.monotonic() >= told:
            told = time.monotonic() + TELL_SECONDS
            say(f"node {rank} waits for node 0 at {address}:{port}")
        try:
            # Asked first with a plain socket: torch waits inside C++, where no signal arrives.
            socket.create_connection((address, port), timeout=5).close()
            store = TCPStore(address, port, None, False, timeout=_TIMEOUT, wait_for_workers=False)
            prefixed = PrefixStore("nodes", store)
            if prefixed.check(["open"]) and prefixed.add(f"joined/{rank}", 1) == 1:
                return prefixed
        except (OSError, STORE_ERROR):
            pass  # not there yet, or just going
        time.sleep(1.0)


def _place() -> tuple[str, int]:
    return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])


_TIMEOUT = timedelta(seconds=LOST_SECONDS)
