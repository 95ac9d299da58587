"""What can go wrong between a client and the API server, by script.

`refuse` answers requests with an error, `on_request` calls back before or after each one,
`down` drops connections, `cut_streams` ends what is being streamed.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from aiohttp import web

from tests.kubernetes_double.admission import RefusedError

TOKEN = "test-token"
SUBRESOURCE = re.compile(r"/namespaces/[^/]+/([a-z]+)/([^/]+)/([a-z]+)$")
VERBS = {"GET": "get", "POST": "create", "DELETE": "delete", "PATCH": "patch", "PUT": "update"}


FILLING = "caches are filling"
TOO_MANY = "Too many requests, please try again later.\n"


class TextAnswerError(RefusedError):
    """A refusal whose body is text: what looks after priority and fairness writes no Status."""


@dataclass(frozen=True)
class Request:
    """One request as RBAC sees it."""

    verb: str
    resource: str  # "jobs", "pods/log"
    group: str
    namespace: str
    name: str = ""

    @classmethod
    def of(cls, request: web.Request) -> "Request":
        path, verb = request.path, VERBS[request.method]
        group = path.split("/")[2] if path.startswith("/apis/") else ""
        if found := SUBRESOURCE.search(path):
            namespace = request.match_info.get("namespace", "")
            return cls(verb, f"{found[1]}/{found[3]}", group, namespace, found[2])
        kind = request.match_info.get("kind", "")
        name = request.match_info.get("name", "")
        if verb == "get" and kind and not name:
            verb = "watch" if request.query.get("watch") else "list"
        return cls(verb, kind, group, request.match_info.get("namespace", ""), name)


@dataclass
class Refusal:
    code: int
    reason: str
    message: str
    verb: str
    resource: str
    times: int  # that are left


@dataclass
class Faults:
    """The state of everything that is wrong at the moment."""

    tokens: set[str] = field(default_factory=lambda: {TOKEN})
    namespaces: set[str] = field(default_factory=lambda: {"default"})
    allowed: Callable[[Request], bool] = lambda request: True
    permits: Callable[[str, Request], bool] = lambda token, request: True  # RBAC
    down: bool = False
    slow_seconds: float = 0.0
    held: Callable[[Request], bool] = lambda request: False  # its answer waits as long as this
    log_cuts: list[int] = field(default_factory=list)  # bytes after which each next stream is cut
    seen: list[Request] = field(default_factory=list)
    before_request: Callable[[Request, int], None] = lambda request, number: None
    after_request: Callable[[Request, int], None] = lambda request, number: None
    _refusals: list[Refusal] = field(default_factory=list)
    _streams: set["asyncio.Task[None]"] = field(default_factory=set)
    _left: dict[int, int] = field(default_factory=dict)

    def refuse(
        self,
        code: int,
        reason: str,
        message: str = "",
        *,
        verb: str = "",
        resource: str = "",
        times: int = 1,
    ) -> Refusal:
        """Answer the next `times` requests, of that verb and resource, with an error."""
        refusal = Refusal(code, reason, message or reason, verb, resource, times)
        self._refusals.append(refusal)
        return refusal

    def fill_caches(self, *, verb: str = "", resource: str = "", times: int = 1) -> Refusal:
        """Answer as an API server whose authorization caches are filling: with a true 403."""
        return self.refuse(403, FILLING, verb=verb, resource=resource, times=times)

    async def before(self, asked: Request, request: web.Request) -> None:
        """Raise RefusedError where the request is not to be answered as usual."""
        if self.down:
            assert request.transport is not None
            request.transport.abort()
            raise web.HTTPServiceUnavailable
        self.seen.append(asked)
        self.before_request(asked, len(self.seen))
        if self.slow_seconds:
            await asyncio.sleep(self.slow_seconds)
        while self.held(asked):
            await asyncio.sleep(0.01)
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in self.tokens:
            raise RefusedError(401, "Unauthorized", "Unauthorized")
        for refusal in self._refusals:
            suits = refusal.verb in ("", asked.verb) and refusal.resource in ("", asked.resource)
            if suits and refusal.times > 0:
                refusal.times -= 1
                if refusal.reason == FILLING:
                    raise forbidden(asked)
                if refusal.reason == TOO_MANY:
                    raise TextAnswerError(429, "", TOO_MANY)
                raise RefusedError(refusal.code, refusal.reason, refusal.message)
        self._check_rights(token, asked)

    def also(self, asked: Request, request: web.Request) -> None:
        """What a request asks for besides: an apply of what is not there creates it."""
        self.seen.append(asked)
        self._check_rights(request.headers.get("Authorization", "").removeprefix("Bearer "), asked)

    def _check_rights(self, token: str, asked: Request) -> None:
        if asked.resource and not self.allows(token, asked):
            raise forbidden(asked)

    def allows(self, token: str, asked: Request) -> bool:
        """Whether who has this token may do that."""
        return self.allowed(asked) and self.permits(token, asked)

    def after(self, asked: Request) -> None:
        self.after_request(asked, len(self.seen))

    def check_namespace(self, namespace: str) -> None:
        if namespace not in self.namespaces:
            details = {"kind": "namespaces", "name": namespace}
            raise RefusedError(404, "NotFound", f'namespaces "{namespace}" not found', details)

    @contextlib.asynccontextmanager
    async def cuttable(
        self, response: web.StreamResponse, *, log: bool = False
    ) -> AsyncIterator[None]:
        """Let `cut_streams` end what happens in this block."""
        task = asyncio.current_task()
        assert task is not None
        self._streams.add(task)
        if log and self.log_cuts:
            self._left[id(response)] = self.log_cuts.pop(0)
        try:
            yield
        except asyncio.CancelledError:
            # Neither a last chunk nor a goodbye: the connection is gone.
            transport = response._req.transport if response._req else None  # type: ignore[union-attr]
            if transport is not None:
                transport.abort()
            raise ConnectionResetError from None
        finally:
            self._streams.discard(task)
            self._left.pop(id(response), None)

    async def log_bytes(self, response: web.StreamResponse, data: bytes) -> None:
        """Send a piece of a log, cut in the middle where the stream has had its share."""
        left = self._left.get(id(response))
        if left is None:
            await response.write(data)
            return
        self._left[id(response)] = left - len(data)
        await response.write(data[:left])
        if len(data) >= left:
            # What is still in the socket's buffer must arrive: a cut loses the future alone.
            await asyncio.sleep(0.01)
            raise asyncio.CancelledError

    def cut_streams(self) -> None:
        """End every watch and log stream that is open, in the middle."""
        for task in list(self._streams):
            task.cancel()


def forbidden(asked: Request) -> RefusedError:
    """What RBAC answers."""
    where = f'in API group "{asked.group}" in the namespace "{asked.namespace}"'
    kind = asked.resource.partition("/")[0]
    qualified = f"{kind}.{asked.group}" if asked.group else kind
    named = f' "{asked.name}"' if asked.name else ""
    words = (
        f'{qualified}{named} is forbidden: User "system:serviceaccount:default:default" cannot '
        f'{asked.verb} resource "{asked.resource}" {where}'
    )
    details = {"kind": kind}
    details |= {"group": asked.group} if asked.group else {}
    details |= {"name": asked.name} if asked.name else {}
    return RefusedError(403, "Forbidden", words, details)
