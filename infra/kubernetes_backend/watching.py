"""Follow one Job to its end: its state by looking every other second, its logs as streams.

Looking is enough here: a step runs for minutes to weeks, two small requests tell all,
and there is no watch to lose, renew or fall behind with.
"""

import asyncio
import contextlib
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from infra.backend import StillWaiting
from infra.kubernetes_backend import diagnosis
from infra.kubernetes_backend.connection import Connection
from infra.kubernetes_backend.contact import Object
from infra.kubernetes_backend.followers import HEARTBEAT_SECONDS, heartbeat
from infra.kubernetes_backend.interruptible import Outlet
from infra.kubernetes_backend.manifests_job import RAN_ANNOTATION
from infra.kubernetes_backend.pod_logs import CONTEXT_LINES, Position, follow

LOOK_SECONDS = 2.0
PATIENT_LOOKS = 1.5  # a reason to wait that lasts less is not worth a line
REMIND_SECONDS = 15 * 60.0  # between two lines about the same wait
DRAIN_SECONDS = 60.0  # for the last lines of pods that have ended


@dataclass
class Followed:
    """What is known of a Job beyond what the cluster says: kept from one wait to the next."""

    name: str
    uid: str
    adopted: bool = False
    since: str | None = None  # when we last followed it, as an earlier process
    positions: dict[str, Position] = field(default_factory=dict)  # by pod uid
    with_past: frozenset[str] | None = None  # uids of pods that ran at our first look
    ran: bool = False  # every pod that it wants has run at some time


@dataclass(frozen=True)
class Seen:
    """How the Job was when it ended, or when it went away (`gone`)."""

    job: Object
    pods: list[Object]
    gone: bool = False
    timed_out: str = ""  # why it waited when `pending_timeout_seconds` were over


class Watcher:
    """Looks after one Job.

    Args:
        follower: Our name among those who follow the Job.
        pending_timeout_seconds: Until a pod must have started; 0: for ever.
        look_seconds: Between two looks.
    """

    def __init__(
        self,
        connection: Connection,
        followed: Followed,
        outlet: Outlet,
        *,
        follower: str,
        pending_timeout_seconds: float = 0.0,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        self._connection, self._followed, self._outlet = connection, followed, outlet
        self._follower = follower
        self._pending_timeout_seconds = pending_timeout_seconds
        self._look_seconds = look_seconds
        self._logs: dict[str, asyncio.Task[None]] = {}
        self._ended: dict[str, asyncio.Event] = {}
        self._pods: dict[str, Object] = {}  # all that were seen, also those gone since
        self._waiting_since = self._reminded_at = self._beat_at = time.monotonic()
        self._told: set[str] = set()
        self._told_ends: set[str] = set()  # uids of pods

    async def watch(self) -> Seen:
        """Return when the Job has ended and all its lines are handed over."""
        try:
            seen = await self._until_ended()
            await self._drain()
            return seen
        finally:
            for task in self._logs.values():
                task.cancel()
            await asyncio.gather(*self._logs.values(), return_exceptions=True)

    async def _until_ended(self) -> Seen:
        last: Object = {}
        while True:
            job = await self._connection.read_job(self._followed.name)
            if job is None or job["metadata"]["uid"] != self._followed.uid:
                return Seen(last, list(self._pods.values()), gone=True)
            last = job
            pods = await self._connection.list_pods(job)
            self._follow_logs(pods)
            if diagnosis.is_complete(job) or diagnosis.is_failed(job):
                return Seen(job, list(self._pods.values()))
            self._tell_replaced(pods)
            await self._give_up(job)
            why = await self._explain(job, pods)
            if why is not None:
                return Seen(job, pods, timed_out=why)
            await self._beat()
            await asyncio.sleep(self._look_seconds)

    async def _give_up(self, job: Object) -> None:
        """Have the Job fail where its next pod would end as the last ones did."""
        if job["spec"].get("backoffLimit") != 0 and (
            why := diagnosis.why_hopeless(self._pods.values())
        ):
            self._say(f"not tried again: {why}")
            await self._connection.end_retries(self._followed.name)

    async def _beat(self) -> None:
        """Say that somebody still follows the Job."""
        if time.monotonic() - self._beat_at >= HEARTBEAT_SECONDS:
            self._beat_at = time.monotonic()
            await self._connection.annotate_job(self._followed.name, heartbeat(self._follower))

    # --- logs ---------------------------------------------------------------------------

    def _follow_logs(self, pods: Iterable[Object]) -> None:
        """Follow the pods that have started, and notice those that have ended or gone."""
        pods, present = list(pods), set()
        if self._followed.with_past is None:
            started = (pod["metadata"]["uid"] for pod in pods if diagnosis.has_started(pod))
            self._followed.with_past = frozenset(started)
        for pod in pods:
            uid = pod["metadata"]["uid"]
            present.add(uid)
            self._pods[uid] = pod
            if uid not in self._logs and diagnosis.has_started(pod):
                self._ended[uid] = asyncio.Event()
                self._logs[uid] = asyncio.ensure_future(
                    follow(
                        self._connection, pod, self._position(uid), self._outlet, self._ended[uid]
                    )
                )
            if uid in self._ended and diagnosis.has_ended(pod):
                self._ended[uid].set()
        for uid in self._ended.keys() - present:
            self._ended[uid].set()

    def _position(self, uid: str) -> Position:
        """Where to begin in the pod's log: only one that ran before we came has a past."""
        followed = self._followed
        if uid not in followed.positions:
            position = Position()
            if followed.adopted and followed.since:
                position.since = followed.since
            elif followed.adopted and uid in (followed.with_past or ()):
                position.context_lines = CONTEXT_LINES
            followed.positions[uid] = position
        return followed.positions[uid]

    async def _drain(self) -> None:
        for event in self._ended.values():
            event.set()
        if self._logs:
            _, late = await asyncio.wait(self._logs.values(), timeout=DRAIN_SECONDS)
            if late:
                self._say(
                    f"the last lines of {len(late)} of its pods could not be read within "
                    f"{DRAIN_SECONDS:g} seconds; the pods' own logs have them"
                )
        for task in self._logs.values():
            if task.done() and not task.cancelled():
                task.result()

    # --- waiting ------------------------------------------------------------------------

    def _tell_replaced(self, pods: list[Object]) -> None:
        """Say once of each pod that ended badly, or went away, that another took its place."""
        names = {pod["metadata"]["uid"]: pod["metadata"]["name"] for pod in pods}
        alive = [pod["metadata"]["name"] for pod in pods if not diagnosis.has_ended(pod)]
        for uid, pod in self._pods.items() if alive else ():
            ended = diagnosis.has_ended(pod)
            why = diagnosis.why_ended(pod) if ended else ""
            why = why if uid in names or ended else diagnosis.last_seen(pod)
            if why and uid not in self._told_ends:
                self._told_ends.add(uid)
                self._say(f"pod {pod['metadata']['name']} ended ({why}); {alive[-1]} continues")

    async def _explain(self, job: Object, pods: list[Object]) -> str | None:
        """Tell, once for each reason, why nothing runs; the reason once that is too long."""
        now = time.monotonic()
        alive = [pod for pod in pods if not diagnosis.has_ended(pod)]
        wanted = diagnosis.pods_wanted(job)
        await self._note_if_ran(job, pods)
        run = all(diagnosis.is_running(pod) for pod in alive)
        if alive and run and len(alive) >= wanted:
            if self._told:
                self._say("running")
            self._told.clear()
            self._waiting_since = self._reminded_at = now
            return None
        waited = now - self._waiting_since
        if waited < PATIENT_LOOKS * self._look_seconds:
            return None
        why = diagnosis.why_waiting(job, pods, await self._events(job, pods))
        if why and diagnosis.without_names(why) not in self._told:
            # Two reasons may take turns (ErrImagePull, ImagePullBackOff): each is told once.
            self._told.add(diagnosis.without_names(why))
            self._say(f"waiting: {why}")
        if now - self._reminded_at >= REMIND_SECONDS:
            self._reminded_at = now
            self._remind(job, why, waited)
        # A training that was evicted waits for its place again: no reason to give it up.
        timeout = 0.0 if self._followed.ran else self._pending_timeout_seconds
        late = timeout and self._waited(job, waited) > timeout
        return (why or "no reason is known") if late else None

    def _waited(self, job: Object, seen: float) -> float:
        """Seconds that the Job waits by now; `seen` of them we saw, and before them others may."""
        with contextlib.suppress(KeyError, TypeError, ValueError):
            if self._followed.adopted and not self._followed.ran:
                created = datetime.fromisoformat(job["metadata"]["creationTimestamp"])
                return max(seen, (datetime.now(UTC) - created).total_seconds())
        return seen

    def _remind(self, job: Object, why: str, seen: float) -> None:
        """Say again what the Job waits for, and since when."""
        waited = self._waited(job, seen)
        minutes = round(waited / 60)
        since = datetime.now(UTC) - timedelta(seconds=waited)
        began = since.strftime("%Y-%m-%d %H:%M UTC")
        reason = why or "no reason is known"
        text = f"still waiting, for {minutes} minutes (since {began}): {reason}"
        if self._pending_timeout_seconds and not self._followed.ran:
            text += f". It is given up after {self._pending_timeout_seconds / 60:g} minutes"
        self._outlet.say(StillWaiting(f"job {self._followed.name}: {text}"))

    async def _note_if_ran(self, job: Object, pods: list[Object]) -> None:
        """Remember, also for who adopts the Job later, that all of its pods have run.

        Of a pod that was evicted nothing may be left, and a Job's status does not say it.
        """
        if not self._followed.ran and diagnosis.have_all_run(job, pods):
            self._followed.ran = True
            await self._connection.annotate_job(self._followed.name, {RAN_ANNOTATION: "true"})

    async def _events(self, job: Object, pods: list[Object]) -> list[Object]:
        waiting = [pod for pod in pods if not diagnosis.has_started(pod)]
        uids = [obj["metadata"]["uid"] for obj in (waiting or [job])]
        return [event for uid in uids for event in await self._connection.list_events(uid)]

    def _say(self, text: str) -> None:
        self._outlet.say(f"job {self._followed.name}: {text}")
