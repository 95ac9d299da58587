"""The backend whose steps are Kubernetes Jobs; see `infra.backend.Backend`.

A Job is named after its work alone, so creating it is the lock: a second request for the
same work, also after a kill -9 at any moment, meets the same Job. Restarts within a
Job are Kubernetes' business; here only the talking to the cluster is retried.
"""

import contextlib
import logging
import uuid
from collections.abc import Callable, Collection, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

from infra.backend import BusyError, ContactError, Line, PlaceError, StepEnd, StepSpec, unheard
from infra.kubernetes_backend import creating, diagnosis, ending, followers, removal
from infra.kubernetes_backend import manifests_job as manifests
from infra.kubernetes_backend.connection import Connection
from infra.kubernetes_backend.contact import PATIENCE_SECONDS, Object
from infra.kubernetes_backend.interruptible import Outlet, run
from infra.kubernetes_backend.manifests_pod import CONFIG_ANNOTATION
from infra.kubernetes_backend.refusals import RefusedError
from infra.kubernetes_backend.serving import Serving
from infra.kubernetes_backend.watching import LOOK_SECONDS, Followed, Watcher
from trainer.contract.cluster_settings import ClusterSettings
from trainer.contract.json_text import parse_json
from trainer.contract.work_key import differing

T = TypeVar("T")
Work = Callable[[Connection, Outlet], Coroutine[Any, Any, T]]
SETTLE_PATIENCE_SECONDS = 10.0  # a run that has ended does not wait long for a note of it
logger = logging.getLogger(__name__)


class KubernetesBackend:
    """Steps as Jobs in one namespace of a cluster.

    Args:
        settings: What the cluster needs to be told.
        patience_seconds: How long the cluster may be away.
        look_seconds: Between two looks at a Job.
        volumes: Folder below which this process has the volumes mounted, if it has.
    """

    detaches = True

    def __init__(
        self,
        settings: ClusterSettings | None = None,
        *,
        patience_seconds: float = PATIENCE_SECONDS,
        look_seconds: float = LOOK_SECONDS,
        volumes: Path = Path("/"),
    ) -> None:
        self.settings = settings or ClusterSettings()
        self._patience_seconds = patience_seconds
        self._look_seconds = look_seconds
        self._volumes = volumes
        self._followed: dict[str, Followed] = {}
        self._was_accepted = False
        self._allowed: set[str] = set()
        self._nameless = uuid.uuid4().hex  # who we are where nobody said

    @contextlib.contextmanager
    def claim(self, pvc: str, run_name: str, *, attempt: str = "") -> Iterator[None]:
        """Nothing to hold: a Job's name is the lock."""
        yield

    def settle(self, pvc: str, run_name: str, *, failed: bool) -> None:
        """Note at the run's Jobs that are done that the run of the flow they were for is over."""
        how = manifests.SETTLED_FAILED if failed else manifests.SETTLED_DONE

        async def settle(connection: Connection, _: Outlet) -> None:
            for job in await connection.list_jobs(manifests.run_selector(run_name)):
                if diagnosis.is_complete(job):
                    note: dict[str, str | None] = {manifests.SETTLED_ANNOTATION: how}
                    await connection.annotate_job(job["metadata"]["name"], note)

        try:
            self._run(settle, patience_seconds=SETTLE_PATIENCE_SECONDS)
        except (PlaceError, ContactError) as error:
            # The run has ended as it has; the next one may take what this one saw.
            logger.warning("Jobs of %s are not marked as settled: %s", run_name, error)

    def submit(self, spec: StepSpec, *, on_line: Line = unheard) -> str:
        """Create the step's Job, or adopt the one that is there; return what it is called.

        Raises:
            BusyError: Other work is running in this step of the run.
            PlaceError: The cluster refuses; in plain words.
            ContactError: The cluster was away for longer than the patience.
        """
        return self._run(lambda connection, outlet: self._submit(connection, spec, outlet), on_line)

    def wait(self, spec: StepSpec, on_line: Line) -> StepEnd:
        """Hand over the lines of all of the Job's pods until the Job has ended."""
        return self._run(lambda connection, outlet: self._wait(connection, spec, outlet), on_line)

    def cancel(self, spec: StepSpec, *, on_line: Line = unheard) -> None:
        """Delete the Job, unless another flow run follows it; return when its pods are gone."""
        name, ours = self._name(spec), {self._follower(spec)}
        self._run(
            lambda connection, outlet: removal.cancel(connection, name, ours, outlet.say),
            on_line,
        )

    def kill(self, spec: StepSpec) -> None:
        """Delete the Job without waiting; its pods keep their grace."""
        self._run(lambda connection, _: removal.delete(connection, self._name(spec)))

    def hint(self, spec: StepSpec) -> str:
        """How a person follows the step again, or cancels it."""
        namespace = self._namespace_option()
        return (
            f"It continues as Job {self._name(spec)}. Follow it by running the same again; "
            f"cancel it: kubectl{namespace} delete job {self._name(spec)} --cascade=foreground"
        )

    def running_steps(self, pvc: str, run_name: str) -> list[str]:
        """Names of the run's steps whose Jobs have not ended."""
        jobs = self._run(lambda connection, _: self._unfinished(connection, run_name))
        return sorted(_step_of(job) for job in jobs)

    def stop(
        self,
        pvc: str,
        run_name: str,
        *,
        attempts: Collection[str] = (),
        on_line: Line = unheard,
    ) -> list[str]:
        """Cancel every step of the run that is running.

        Steps with any follower; with `attempts`, only those that no other attempt follows.
        """
        ours = {followers.follower_name(attempt) for attempt in attempts}

        async def stop(connection: Connection, outlet: Outlet) -> list[str]:
            stopped = []
            for job in await self._unfinished(connection, run_name):
                name = job["metadata"]["name"]
                if ours:
                    if not await removal.cancel(connection, name, ours, outlet.say):
                        continue
                else:
                    outlet.say(f"Job {name} is being deleted: its step saves, then its pods end")
                    await removal.delete(connection, name)
                    await removal.until_gone(connection, job)
                stopped.append(_step_of(job))
            return sorted(stopped)

        return self._run(stop, on_line)

    def volume(self, pvc: str) -> None:
        return None

    def mount(self, pvc: str) -> Path:
        return Path("/") / pvc

    def serving(self, kind: str) -> Serving:
        """Services in the same namespace; `kind` as the parameter `serving` has it."""
        return Serving(self._run, self.settings, kind=kind, look_seconds=self._look_seconds)

    def stop_service(self, pvc: str, run_name: str, *, kind: str = "") -> bool:
        return self.serving(kind).remove(run_name)

    # --- submit -------------------------------------------------------------------------

    async def _submit(self, connection: Connection, spec: StepSpec, outlet: Outlet) -> str:
        name, said, follower = self._name(spec), "", self._follower(spec)
        while True:
            job = await connection.read_job(name)
            if job is None:
                await self._refuse_other_work(connection, spec, name)
                job = await creating.create(connection, spec, self.settings, follower)
                if job is None:
                    continue  # somebody was faster: look at what is there now
                self._remember(spec, job, adopted=False)
                return f"Job {name}{said}"
            if diagnosis.is_being_deleted(job):
                outlet.say(f"Job {name} is being deleted: waiting until its pods have ended")
                await removal.until_gone(connection, job)
            elif job["metadata"]["annotations"].get(manifests.KEY_ANNOTATION) != spec.key:
                raise BusyError(
                    f"Job {name} was made for other work. Take another run_name, "
                    f"or delete it: kubectl{self._namespace_option()} delete job {name}"
                )
            elif again := await ending.why_not_taken(connection, spec, job, self._volumes):
                # One that changed since we looked is not deleted: look again.
                if await connection.delete_job(job):
                    said = f", made anew ({again})"
                    await removal.until_gone(connection, job)
            elif not diagnosis.is_complete(job) and _is_to_start_over(spec, job):
                raise BusyError(_in_the_way(spec, job, ["no_resume"]))
            elif where := await self._adopt(connection, spec, job):
                return where

    async def _adopt(self, connection: Connection, spec: StepSpec, job: Object) -> str:
        """Follow a Job that is there; empty where it went away in this moment."""
        follower, name = self._follower(spec), job["metadata"]["name"]
        self._remember(spec, job, adopted=True, since=followers.last_alive(job, follower))
        if diagnosis.is_complete(job):
            return f"Job {name}, which is done already"
        adopted = await connection.annotate_job(name, followers.heartbeat(follower))
        if adopted is None or diagnosis.is_being_deleted(adopted):
            return ""
        # An orchestrator killed between the two requests left a Job without its Service.
        services = manifests.objects(spec, self.settings)[1:]
        await creating.create_services(connection, job, services)
        return f"Job {name}, which was already running"

    async def _refuse_other_work(self, connection: Connection, spec: StepSpec, name: str) -> None:
        """Raise BusyError where this step of the run is running with other parameters."""
        for job in await self._unfinished(connection, spec.run_name) if spec.run_name else []:
            if _step_of(job) == spec.step and job["metadata"]["name"] != name:
                names = differing(spec.step, _config_of(job), spec.config)
                raise BusyError(_in_the_way(spec, job, names))

    async def _unfinished(self, connection: Connection, run_name: str) -> list[Object]:
        jobs = await connection.list_jobs(manifests.run_selector(run_name))
        return [j for j in jobs if not (diagnosis.is_complete(j) or diagnosis.is_failed(j))]

    # --- wait ---------------------------------------------------------------------------

    async def _wait(self, connection: Connection, spec: StepSpec, outlet: Outlet) -> StepEnd:
        followed = self._followed.get(self._name(spec))
        assert followed is not None, "submit comes before wait"
        watcher = Watcher(
            connection,
            followed,
            outlet,
            follower=self._follower(spec),
            pending_timeout_seconds=self.settings.pending_timeout_seconds,
            look_seconds=self._look_seconds,
        )
        seen = await watcher.watch()
        log = (
            f"kubectl -n {connection.namespace} logs --tail=-1 --prefix "
            f"-l batch.kubernetes.io/job-name={followed.name}"
        )
        if seen.timed_out:
            await removal.delete(connection, followed.name)
            timeout = self.settings.pending_timeout_seconds
            pods = "no pod" if spec.resources.nodes == 1 else "not every pod"
            why = f"{pods} had started after {timeout:g} seconds ({seen.timed_out}); given up"
            return StepEnd(exit_code=1, outcome=None, reason=why, log=log)
        return await ending.end_of(connection, spec, seen, self._volumes, log)

    # --- details ------------------------------------------------------------------------

    def _run(
        self,
        work: Work[T],
        on_line: Line = logger.info,
        *,
        patience_seconds: float | None = None,
    ) -> T:
        patience = self._patience_seconds if patience_seconds is None else patience_seconds

        async def connected(outlet: Outlet) -> T:
            async with Connection(
                self.settings.namespace,
                patience_seconds=patience,
                tell=outlet.say,
                was_accepted=self._was_accepted,
                allowed=self._allowed,
            ) as connection:
                try:
                    return await work(connection, outlet)
                finally:
                    self._was_accepted = connection.was_accepted

        try:
            return run(connected, on_line)
        except RefusedError as error:
            raise PlaceError(f"the cluster answered something unexpected ({error}).") from error

    def _name(self, spec: StepSpec) -> str:
        return manifests.name_of(spec)

    def _follower(self, spec: StepSpec) -> str:
        return followers.follower_name(spec.attempt or self._nameless)

    def _remember(
        self, spec: StepSpec, job: Object, *, adopted: bool, since: str | None = None
    ) -> None:
        name, uid = job["metadata"]["name"], job["metadata"]["uid"]
        known = self._followed.get(name)
        if known is None or known.uid != uid:
            ran = manifests.RAN_ANNOTATION in job["metadata"]["annotations"]
            self._followed[name] = Followed(name, uid, adopted, since, ran=ran)

    def _namespace_option(self) -> str:
        return f" -n {self.settings.namespace}" if self.settings.namespace else ""


def _config_of(job: Object) -> dict[str, Any]:
    """The config that the Job was made with; empty where it can't be read."""
    annotations = job["spec"]["template"]["metadata"].get("annotations") or {}
    try:
        config = parse_json(annotations.get(CONFIG_ANNOTATION, "{}"))
    except ValueError:
        return {}
    return config if isinstance(config, dict) else {}


def _is_to_start_over(spec: StepSpec, job: Object) -> bool:
    """Whether `no_resume` is asked for while work runs that was started without it."""
    return bool(spec.config.get("no_resume")) and not _config_of(job).get("no_resume")


def _in_the_way(spec: StepSpec, job: Object, names: list[str]) -> str:
    return (
        f"run_name {spec.run_name!r}: its {spec.step} step is running with other parameters "
        f"({', '.join(names) or 'not known'}; Job {job['metadata']['name']}). "
        f"Stop it first: finetune stop {spec.run_name} --backend kubernetes"
    )


def _step_of(job: Object) -> str:
    return job["metadata"]["labels"]["app.kubernetes.io/component"]
