"""A run's service on a cluster: tried before clients are sent to it, put back, removed.

    start     the new revision beside the one that serves, until it is ready; its own address
    promote   clients are sent to it, the one before goes
    withdraw  it goes, the one before has served all the time

Every call may be made again after a crash at any moment: each applies what should be.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

from infra.backend import Line
from infra.kubernetes_backend import diagnosis
from infra.kubernetes_backend.connection import Connection
from infra.kubernetes_backend.contact import Object
from infra.kubernetes_backend.fields import dicts_of, part_of, text_of, whole_of
from infra.kubernetes_backend.inference_services import InferenceServices
from infra.kubernetes_backend.interruptible import Outlet
from infra.kubernetes_backend.looks import Look
from infra.kubernetes_backend.plain_services import PlainServices
from infra.kubernetes_backend.standard_services import StandardServices
from infra.serving_place import ServingError, ServingSpec
from trainer.contract.cluster_settings import ClusterSettings
from trainer.contract.errors import EXIT_INCOMPLETE, EXIT_REFUSED
from trainer.contract.json_text import parse_json

T = TypeVar("T")
MOST_RESTARTS = 3
REVISION_LABEL = "serving.knative.dev/revision"


class Kind(Protocol):
    """One way in which a cluster serves."""

    def pods_of(self, spec: ServingSpec) -> str:
        """Label selector of the revision's pods."""

    async def apply(self, spec: ServingSpec, *, trial: bool) -> None:
        """Have the revision made; in a trial what serves keeps all clients."""

    async def look(self, spec: ServingSpec, *, trial: bool) -> Look:
        """How the revision is."""

    async def promote(self, spec: ServingSpec) -> str:
        """Send clients to the revision, and remove all others; return the service's address."""

    async def withdraw(self, spec: ServingSpec, before: ServingSpec | None) -> None:
        """Have the revision removed; `before` continues, and is to be promoted once it is ready."""

    async def serving(self, name: str) -> ServingSpec | None:
        """What clients of the service are sent to, or the newest that it was asked for."""

    async def remove(self, run_name: str) -> bool:
        """Remove the run's service and all revisions, also one that is tried; whether any was."""


class Run(Protocol):
    """Does work with a connection, in the calling thread's time."""

    def __call__(
        self,
        work: Callable[[Connection, Outlet], Coroutine[Any, Any, T]],
        on_line: Line = ...,
    ) -> T: ...


class Serving:
    """Services of runs, as KServe's InferenceServices or as Deployments.

    Args:
        run: Makes a connection and does the work.
        settings: What the cluster needs to be told.
        kind: "kserve", "deployment", or "" for what the cluster has.
        look_seconds: Between two looks.

    All methods raise PlaceError where the cluster refuses, ContactError where it is away.
    """

    def __init__(
        self, run: Run, settings: ClusterSettings, *, kind: str, look_seconds: float
    ) -> None:
        self._run, self._settings = run, settings
        self._kind, self._look_seconds = kind, look_seconds

    def serving(self, spec: ServingSpec) -> ServingSpec | None:
        """The revision that the service of that name was last asked for."""

        async def work(connection: Connection, _: Outlet) -> ServingSpec | None:
            return await (await self._of(connection)).serving(spec.name)

        return self._run(work)

    def start(self, spec: ServingSpec, before: ServingSpec | None, on_line: Line) -> str:
        """Make the revision and wait until it is ready; return its own address.

        Args:
            before: The revision that serves now, and continues.
            on_line: Told why it is not ready, once for each reason.
        Raises:
            ServingError: It will not be ready, or was not in time. It is still there.
        """

        async def work(connection: Connection, outlet: Outlet) -> str:
            kind = await self._of(connection)
            await kind.apply(spec, trial=before is not None)
            return await self._until_ready(connection, kind, spec, before is not None, outlet)

        return self._run(work, on_line)

    def promote(self, spec: ServingSpec, on_line: Line) -> str:
        """Send clients to the revision, and remove all others; return the service's address."""

        async def work(connection: Connection, outlet: Outlet) -> str:
            kind = await self._of(connection)
            url = await kind.promote(spec)
            return url or await self._until_ready(connection, kind, spec, False, outlet)

        return self._run(work, on_line)

    def withdraw(self, spec: ServingSpec, before: ServingSpec | None, on_line: Line) -> None:
        """Remove the revision; `before` continues, and without one the service goes."""

        async def work(connection: Connection, outlet: Outlet) -> None:
            kind = await self._of(connection)
            await kind.withdraw(spec, before)
            if before is None:
                return
            try:
                await self._until_ready(connection, kind, before, True, outlet)
                await kind.promote(before)
            except ServingError as error:
                outlet.say(f"the revision before serves on, but a new server of it: {error}")

        self._run(work, on_line)

    def remove(self, run_name: str) -> bool:
        """Remove the run's service, of whatever kind; whether there was one."""

        async def work(connection: Connection, _: Outlet) -> bool:
            kinds = [await self._of(connection)]
            if not isinstance(kinds[0], PlainServices):
                kinds.append(PlainServices(connection, self._settings))
            return any([await kind.remove(run_name) for kind in kinds])

        return self._run(work)

    # --- details ------------------------------------------------------------------------

    async def _of(self, connection: Connection) -> Kind:
        kind = self._kind
        if not kind:
            kind = "kserve" if await InferenceServices.known_to(connection) else "deployment"
        if kind != "kserve":
            return PlainServices(connection, self._settings)
        standard = await StandardServices.needed_by(connection)
        made = StandardServices if standard else InferenceServices
        return made(connection, self._settings)

    async def _until_ready(
        self, connection: Connection, kind: Kind, spec: ServingSpec, trial: bool, outlet: Outlet
    ) -> str:
        deadline, told = time.monotonic() + spec.ready_seconds, set[str]()
        while True:
            look = await kind.look(spec, trial=trial)
            if look.url:
                return look.url
            pods = _of_revision(await connection.select_pods(kind.pods_of(spec)), look.revision)
            given_up = why_given_up(pods, spec.image)
            why = given_up or await _why_pods_wait(connection, pods) or look.why
            if given_up or look.hopeless or time.monotonic() > deadline:
                late = (
                    "" if given_up or look.hopeless else f" within {spec.ready_seconds:g} seconds"
                )
                raise ServingError(f"{spec.name} did not become ready{late}: {why or 'unknown'}")
            if why and diagnosis.without_names(why) not in told:
                # Two reasons may take turns (ErrImagePull, ImagePullBackOff): each is told once.
                told.add(diagnosis.without_names(why))
                outlet.say(f"{spec.name}: waiting: {why}")
            await asyncio.sleep(self._look_seconds)


def _of_revision(pods: list[Object], revision: str) -> list[Object]:
    """The pods of one of Knative's revisions; those of no revision of Knative's as they are."""
    labels = [pod["metadata"].get("labels", {}).get(REVISION_LABEL, revision) for pod in pods]
    return [pod for pod, label in zip(pods, labels, strict=True) if label == revision]


async def _why_pods_wait(connection: Connection, pods: list[Object]) -> str:
    waiting = [pod for pod in pods if not diagnosis.has_started(pod)]
    events = [e for pod in waiting for e in await connection.list_events(pod["metadata"]["uid"])]
    reasons = (diagnosis.why_pod_waits(pod, events) for pod in waiting)
    return next((reason for reason in reasons if reason), "")


def why_given_up(pods: list[Object], image: str) -> str:
    """Why another try of the servers would end the same way; empty: it may not."""
    statuses = [dicts_of(part_of(pod, "status").get("containerStatuses")) for pod in pods]
    for status in (one for found in statuses for one in found):
        restarts = whole_of(status.get("restartCount"), 0)
        for state in ("state", "lastState"):
            ended = part_of(status, state, "terminated")
            code = ended.get("exitCode")
            if code == EXIT_REFUSED:
                return _message_of(ended)
            if code == EXIT_INCOMPLETE:
                return f"{_message_of(ended)} Image: {image}."
            if ended and restarts >= MOST_RESTARTS:
                return f"its server ended {restarts} times, last with exit code {code}"
    return ""


def _message_of(ended: Object) -> str:
    """What a server that ended had left to say."""
    left = text_of(ended.get("message"))
    try:
        return parse_json(left)["message"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return left or f"it ended with exit code {ended.get('exitCode')}"
