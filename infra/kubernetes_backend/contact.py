"""Contact with a cluster: credentials, and requests that are made again while that can help.

This is the only module that loads the Kubernetes client. What is retried: lost
connections, time-outs, 429 and 5xx, a 401 of credentials that were good before (they are
read again each time), a 403 to what was allowed before (a restarted API server fills its
caches), and a proxy's 404 or unreadable body. Everything else is raised at once.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Self

import aiohttp
from kubernetes_asyncio import client, config
from kubernetes_asyncio.config.kube_config import KUBE_CONFIG_DEFAULT_LOCATION

from infra.backend import ContactError, PlaceError
from infra.kubernetes_backend.answers import answer_of
from infra.kubernetes_backend.refusals import RefusedError, in_words, refusal_of

Object = dict[str, Any]
Tell = Callable[[str], None]
PATIENCE_SECONDS = 20 * 60.0
UNNOTICED_SECONDS = 1.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.25, 15.0
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
# The one before may have a request running; a log that is cut is opened anew. Each takes
# 0.7 MB, and credentials of a quarter of an hour are 672 in a week.
KEPT_CLIENTS = 2
IN_EVERY_CLUSTER = ("jobs.batch", "pods", "events", "services", "the API's groups")
LOST = (aiohttp.ClientError, TimeoutError, OSError)
logger = logging.getLogger(__name__)


class Contact:
    """Contact with one namespace of a cluster; an async context manager.

    Args:
        namespace: Empty: the kubeconfig's, or the one that this pod runs in.
        patience_seconds: How long a request is tried again while the cluster is away.
        tell: Called with a line for people when contact is lost, and found again.
        was_accepted: The cluster has taken these credentials before: one that refuses them
            now may take them again, or those that replace them.
        allowed: What was answered before, as RBAC says it; added to.
        clock: Seconds that only grow.
        pause: Lets so many of them pass.
    """

    def __init__(
        self,
        namespace: str = "",
        *,
        patience_seconds: float = PATIENCE_SECONDS,
        tell: Tell = logger.warning,
        was_accepted: bool = False,
        allowed: set[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._clock, self._pause = clock, pause
        self.namespace = namespace
        self._given_namespace = namespace
        self._patience_seconds = patience_seconds
        self._tell = tell
        self.was_accepted = was_accepted
        self.allowed = set() if allowed is None else allowed
        self._api: Any = None  # typed for models; here plain dicts go in and bytes come out
        self._batch: Any = None
        self._core: Any = None
        self._credentials: Any = None
        self._clients: list[client.ApiClient] = []

    async def __aenter__(self) -> Self:
        await self._load()
        return self

    async def __aexit__(self, *error: object) -> None:
        for made in self._clients:
            await made.close()

    @property
    def is_namespace_given(self) -> bool:
        """Whether the settings name it, rather than the kubeconfig."""
        return bool(self._given_namespace)

    async def _ask(self, action: str, request: Callable[[], Awaitable[Any]]) -> Object:
        """Make a request until it is answered.

        Raises:
            RefusedError: Answered with 404 or 409, which callers expect.
            PlaceError: Refused, in plain words.
            ContactError: No answer for longer than the patience.
        """
        # Since the first that failed: one that took long and failed once is no lost contact.
        failing_since: float | None = None
        pause, told = FIRST_PAUSE_SECONDS, False
        while True:
            try:
                answer = await self._once(action, request)
            except RefusedError as error:
                if not self._may_pass(error, action):
                    expected = error.code == 409 or (error.code == 404 and not error.of_namespace)
                    if expected:
                        raise
                    raise in_words(error, action, self.namespace) from error
                problem: Exception = error
                pause = max(pause, min(error.retry_after_seconds, LONGEST_PAUSE_SECONDS))
            except LOST as error:
                problem = error
            else:
                if told:
                    self._tell("the cluster answers again")
                return answer
            failing_since = self._clock() if failing_since is None else failing_since
            failing = self._clock() - failing_since
            if failing > self._patience_seconds:
                raise ContactError(
                    f"the cluster did not answer for {self._patience_seconds:.0f} seconds "
                    f"(asked to {action}: {_shown(problem)}). The step continues without us; "
                    "run the same again to follow it."
                ) from problem
            if not told and failing > UNNOTICED_SECONDS:
                told = True
                self._tell(f"the cluster does not answer ({_shown(problem)}); trying on")
            await self._pause(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def _may_pass(self, error: RefusedError, action: str) -> bool:
        """Whether the same request may be answered otherwise in a while."""
        expired = error.code == 401 and self.was_accepted
        known = error.unauthorized and action in self.allowed
        garbled = error.code < 300 and self.was_accepted
        # Of a new object a quota was changed meanwhile; a patch names no version that it wants.
        crossed = error.reason == "Conflict" and action.startswith(("create ", "patch "))
        # A proxy whose API server restarts knows no path; of a Job that is gone a Status tells.
        astray = error.code == 404 and not error.reason and action.endswith(IN_EVERY_CLUSTER)
        passing = error.transient or expired or known or garbled or crossed
        return passing or (astray and self.was_accepted)

    async def _once(self, action: str, request: Callable[[], Awaitable[Any]]) -> Object:
        response = await request()
        body = await response.read()
        if response.status < 300:
            answer = answer_of(action, response.status, body)
            self.was_accepted = True
            self.allowed.add(action)
            return answer
        error = refusal_of(response.status, body, response.headers.get("Retry-After", ""))
        if error.code == 401 and self.was_accepted:
            with contextlib.suppress(PlaceError):  # a file that is being written: read it next time
                await self._load()
        raise error

    async def _load(self) -> None:
        """Read the credentials, anew where they were read before."""
        settings = client.Configuration()
        try:
            inside = await _load_into(settings)
        except config.ConfigException as error:
            raise PlaceError(
                f"there is no cluster to talk to ({error}). Set KUBECONFIG, or run inside one."
            ) from error
        credentials = (settings.host, settings.api_key, settings.cert_file, settings.ssl_ca_cert)
        if credentials == self._credentials:
            return
        self._credentials = credentials
        self._api = client.ApiClient(settings)
        self._clients.append(self._api)
        if len(self._clients) > KEPT_CLIENTS:
            await self._clients.pop(0).close()
        self._batch, self._core = client.BatchV1Api(self._api), client.CoreV1Api(self._api)
        self.namespace = self._given_namespace or _default_namespace(inside)


async def _load_into(settings: client.Configuration) -> bool:
    """Fill in address and credentials; whether they are those of a pod."""
    if os.environ.get("KUBECONFIG") or Path(KUBE_CONFIG_DEFAULT_LOCATION).expanduser().exists():
        location = os.environ.get("KUBECONFIG") or KUBE_CONFIG_DEFAULT_LOCATION
        await config.load_kube_config(config_file=location, client_configuration=settings)
        return False
    config.load_incluster_config(client_configuration=settings)
    return True


def _default_namespace(inside: bool) -> str:
    if inside:
        return NAMESPACE_FILE.read_text(encoding="utf-8").strip()
    location = os.environ.get("KUBECONFIG") or KUBE_CONFIG_DEFAULT_LOCATION
    _, current = config.list_kube_config_contexts(config_file=location)
    return (current or {}).get("context", {}).get("namespace") or "default"


def _shown(problem: Exception) -> str:
    return str(problem) or type(problem).__name__
