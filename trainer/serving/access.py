"""Who may ask: the Host a request names, the web page it comes from, and its API key.

    any route          on loopback, Host must name loopback: a page can't rebind its own name to it
                       a web page of another origin is refused, unless its origin is allowed;
                       elsewhere a gateway may have rewritten Host (KServe's does), so there the
                       server's own page is known by a header that other pages can't send unasked
    all but OPEN       with a key, `Authorization: Bearer KEY`

A request is refused before its body is read.
"""

import hashlib
import hmac
import ipaddress
import os
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from trainer.contract.errors import RequestError
from trainer.serving.api.bodies import ApiError, shown
from trainer.serving.errors_as_json import error_response

OPEN_PATHS = frozenset({"/", "/metrics", "/v2/health/live", "/v2/health/ready"})
PAGE_HEADER = "X-Finetune-Page"  # as page.html sends it
CLOSE = {"Connection": "close"}  # the body is not read


def read_api_key(variable: str) -> str:
    """The API key in an environment variable; empty where no variable is named.

    Raises:
        RequestError: The variable is not set, or its value can't be a header's. Never shows it.
    """
    if not variable:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise RequestError(
            f"serving.api_key names an environment variable that is not set (got {variable!r}). "
            "Set it to the key that clients are to send."
        )
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise RequestError(
            f"The environment variable {variable!r} holds a key that no client can send. "
            "Use letters, digits and signs of ASCII, without spaces."
        )
    return key


class Access:
    """ASGI middleware: refuse who may not ask.

    Args:
        app: What answers the others.
        api_key: Empty: none is needed.
        origins: Web origins whose pages may ask, for instance `https://example.org`.
        on_loopback: Whether the server listens on this machine alone.
    """

    def __init__(
        self, app: ASGIApp, *, api_key: str, origins: Sequence[str], on_loopback: bool
    ) -> None:
        self.app = app
        self._key_digest = _digest(api_key.encode()) if api_key else None
        self._origins = frozenset(origins)
        self._on_loopback = on_loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (error := self._problem(scope)):
            await error_response(scope["path"], error)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _problem(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if self._on_loopback and host and not is_loopback(host):
            return ApiError(
                403,
                f"Host names another machine (got {shown(host)}). This server answers on "
                "this machine only. Ask it as localhost or 127.0.0.1.",
                headers=CLOSE,
            )
        origin = headers.get("origin")
        may = origin is None or self._is_allowed(origin, host) or self._is_own_page(headers)
        if origin is not None and not may:
            return ApiError(
                403,
                f"a web page of this origin may not ask (got {shown(origin)}). "
                "Name it in serving.cors_origins to allow it.",
                headers=CLOSE,
            )
        if scope["path"] not in OPEN_PATHS and not self._has_key(headers):
            return ApiError(
                401,
                "the API key is missing or wrong. Send it as: Authorization: Bearer KEY.",
                headers={"WWW-Authenticate": "Bearer", **CLOSE},
            )
        return None

    def _is_allowed(self, origin: str, host: str) -> bool:
        own = {f"http://{host}", f"https://{host}"}
        return origin in self._origins or (bool(host) and origin in own)

    def _is_own_page(self, headers: Headers) -> bool:
        """Whether the page at `/` of this server asks, under a name that Host doesn't show.

        A browser sends a header of no standard to another origin only after a preflight request,
        which has not that header and is refused.
        Source: https://fetch.spec.whatwg.org/#cors-preflight-fetch
        """
        site = headers.get("sec-fetch-site", "same-origin")  # plain HTTP goes without
        return not self._on_loopback and PAGE_HEADER in headers and site == "same-origin"

    def _has_key(self, headers: Headers) -> bool:
        if self._key_digest is None:
            return True
        given = headers.getlist("authorization")
        if len(given) != 1:
            return False
        scheme, _, key = given[0].partition(" ")
        # Digests have one length, so the time of the comparison tells nothing about the key.
        same = hmac.compare_digest(_digest(key.strip().encode()), self._key_digest)
        return scheme.lower() == "bearer" and same


def is_loopback(host: str) -> bool:
    """Whether a Host header, or an address to listen on, names this machine's loopback."""
    name = host.strip().lower()
    if name.startswith("["):
        name = name[1:].partition("]")[0]
    elif name.count(":") < 2:
        name = name.partition(":")[0]
    if name.rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()
