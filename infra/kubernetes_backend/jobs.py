"""The backend whose steps are Kubernetes Jobs; see `infra.backend.Backend`.

A Job is named after its work alone, so creating it is the lock: whoever asks for the
same work, also after a kill -9 at any moment, meets the same Job. Restarts within a
Job are Kubernetes' business; here only the talking to the cluster is retried.
"""

import contextlib
import json
import logging
import uuid
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

from infra import manifests
from infra.backend import BusyError, Line, PlaceError, StepEnd, StepSpec
from infra.kubernetes_backend import diagnosis, followers, removal
from infra.kubernetes_backend.connection import PATIENCE_SECONDS, Connection, Object
from infra.kubernetes_backend.interruptible import Outlet, run
from infra.kubernetes_backend.refusals import RefusedError
from infra.kubernetes_backend.serving import Serving
from infra.kubernetes_backend.watching import LOOK_SECONDS, Followed, Seen, Watcher
from infra.manifests_settings import ClusterSettings

T = TypeVar("T")
Work = Callable[[Connection, Outlet], Coroutine[Any, Any, T]]
EXIT_TERMINATED = 143  # of a step that was stopped
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
        self._nameless = uuid.uuid4().hex  # who we are where nobody said

    @contextlib.contextmanager
    def claim(self, pvc: str, run_name: str) -> Iterator[None]:
        """Nothing to hold: a Job's name is the lock."""
        yield

    def submit(self, spec: StepSpec) -> str:
        """Create the step's Job, or adopt the one that is there; return what it is called.

        Raises:
            BusyError: Other work is under way in this step of the run.
            PlaceError: The cluster refuses; in plain words.
            ContactError: The cluster was away for longer than the patience.
        """
        return self._run(lambda connection, _: self._submit(connection, spec))

    def wait(self, spec: StepSpec, on_line: Line) -> StepEnd:
        """Hand over the lines of all of the Job's pods until the Job has ended."""
        return self._run(lambda connection, outlet: self._wait(connection, spec, outlet), on_line)

    def cancel(self, spec: StepSpec) -> None:
        """Delete the Job, unless another flow run follows it; return when its pods are gone."""
        name, follower = self._name(spec), self._follower(spec)
        self._run(lambda connection, _: removal.cancel(connection, name, follower))

    def kill(self, spec: StepSpec) -> None:
        """Delete the Job without waiting; its pods keep their grace."""
        self._run(lambda connection, _: removal.delete(connection, self._name(spec)))

    def hint(self, spec: StepSpec) -> str:
        """How a person follows the step again, or cancels it."""
        namespace = self._namespace_option()
        return (
            f"It goes on as Job {self._name(spec)}. Follow it by running the same again; "
            f"cancel it: kubectl{namespace} delete job {self._name(spec)} --cascade=foreground"
        )

    def running_steps(self, pvc: str, run_name: str) -> list[str]:
        """Names of the run's steps whose Jobs have not ended."""
        jobs = self._run(lambda connection, _: self._unfinished(connection, run_name))
        return sorted(_step_of(job) for job in jobs)

    def stop(self, pvc: str, run_name: str) -> list[str]:
        """Cancel every step of the run that is under way, whoever follows it."""

        async def stop(connection: Connection, _: Outlet) -> list[str]:
            jobs = await self._unfinished(connection, run_name)
            for job in jobs:
                await removal.delete(connection, job["metadata"]["name"])
                await removal.until_gone(connection, job)
            return sorted(_step_of(job) for job in jobs)

        return self._run(stop)

    def serving(self, kind: str) -> Serving:
        """Services in the same namespace; `kind` as the parameter `serving` has it."""
        return Serving(self._run, self.settings, kind=kind, look_seconds=self._look_seconds)

    # --- submit -------------------------------------------------------------------------

    async def _submit(self, connection: Connection, spec: StepSpec) -> str:
        name, said = self._name(spec), ""
        while True:
            job = await connection.read_job(name)
            if job is None:
                await self._refuse_other_work(connection, spec, name)
                job = await self._create(connection, spec)
                if job is None:
                    continue  # somebody was faster: look at what is there now
                self._remember(spec, job, adopted=False)
                return f"Job {name}{said}"
            if diagnosis.is_being_deleted(job):
                await removal.until_gone(connection, job)
            elif job["metadata"]["annotations"].get(manifests.KEY_ANNOTATION) != spec.key:
                raise BusyError(
                    f"Job {name} was made for other work. Take another run_name, "
                    f"or delete it: kubectl{self._namespace_option()} delete job {name}"
                )
            elif again := await self._why_again(connection, spec, job):
                logger.info("Job %s is made anew: %s", name, again)
                said = f", made anew ({again})"
                await connection.delete_job(job)
                await removal.until_gone(connection, job)
            elif where := await self._adopt(connection, spec, job):
                return where

    async def _create(self, connection: Connection, spec: StepSpec) -> Object | None:
        """The new Job, or None where one of that name has appeared meanwhile."""
        job, *more = manifests.objects(spec, self.settings)
        job["metadata"]["annotations"] |= followers.heartbeat(self._follower(spec))
        try:
            created = await connection.create_job(job)
        except RefusedError as error:
            if error.reason == "AlreadyExists":
                return None
            raise
        await self._create_service(connection, created, more)
        return created

    async def _create_service(
        self, connection: Connection, job: Object, more: list[Object]
    ) -> None:
        """What the Job needs beside it; it is deleted with the Job."""
        metadata = job["metadata"]
        owner = {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "name": metadata["name"],
            "uid": metadata["uid"],
        }
        for service in more:
            service["metadata"]["ownerReferences"] = [owner]
            await connection.create_service(service)

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
        await self._create_service(connection, job, manifests.objects(spec, self.settings)[1:])
        return f"Job {name}, which was under way already"

    async def _why_again(self, connection: Connection, spec: StepSpec, job: Object) -> str:
        """Why a Job that has ended is not taken as it is; empty: it is, or it still runs."""
        if diagnosis.is_failed(job):
            why = diagnosis.why_failed(job, await connection.list_pods(job))
            return f"the one before had failed: {why}"
        if not diagnosis.is_complete(job):
            return ""
        attempt = job["metadata"]["annotations"].get(manifests.ATTEMPT_ANNOTATION, "")
        if attempt != spec.attempt:
            # What it made may have changed since; the step itself looks, and says "reused".
            return "the one before was done for another run of the flow"
        if await self._outcome(connection, spec, job) is None:
            return "the outcome of the one before is lost"
        return ""

    async def _refuse_other_work(self, connection: Connection, spec: StepSpec, name: str) -> None:
        """Raise BusyError where this step of the run is under way with other parameters."""
        for job in await self._unfinished(connection, spec.run_name) if spec.run_name else []:
            if _step_of(job) == spec.step and job["metadata"]["name"] != name:
                raise BusyError(
                    f"run_name {spec.run_name!r}: its {spec.step} step is still under way with "
                    f"other parameters (Job {job['metadata']['name']}). "
                    f"Stop it first: finetune stop {spec.run_name} --backend kubernetes"
                )

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
            why = f"no pod had started after {timeout:g} seconds ({seen.timed_out}); given up"
            return StepEnd(exit_code=1, outcome=None, reason=why, log=log)
        return await self._end(connection, spec, seen, log)

    async def _end(self, connection: Connection, spec: StepSpec, seen: Seen, log: str) -> StepEnd:
        outcome = diagnosis.outcome_of(seen.pods, done=diagnosis.is_complete(seen.job))
        if seen.gone:
            why = f"Job {self._name(spec)} was deleted"
            return StepEnd(exit_code=EXIT_TERMINATED, outcome=outcome, reason=why, log=log)
        if diagnosis.is_complete(seen.job):
            outcome = outcome or await self._outcome(connection, spec, seen.job)
            lost = "" if outcome else "it is done, but its outcome is lost; run the same again"
            return StepEnd(exit_code=0, outcome=outcome, reason=lost, log=log)
        code = diagnosis.exit_code_of(seen.pods)
        why = diagnosis.why_failed(seen.job, seen.pods)
        return StepEnd(exit_code=code, outcome=outcome, reason=why, log=log)

    async def _outcome(
        self, connection: Connection, spec: StepSpec, job: Object
    ) -> dict[str, Any] | None:
        """The outcome of a Job that is done: from its pod, else from the volume if it is here."""
        found = diagnosis.outcome_of(await connection.list_pods(job), done=True)
        if found is not None or not spec.run_name:
            return found
        path = self._volumes / spec.volume / spec.run_name / "outcomes" / f"{spec.step}.json"
        with contextlib.suppress(OSError, json.JSONDecodeError):
            outcome = json.loads(path.read_text(encoding="utf-8"))
            return outcome if outcome.get("status") == "done" else None
        return None

    # --- details ------------------------------------------------------------------------

    def _run(self, work: Work[T], on_line: Line = logger.info) -> T:
        async def connected(outlet: Outlet) -> T:
            async with Connection(
                self.settings.namespace,
                patience_seconds=self._patience_seconds,
                tell=outlet.say,
                was_accepted=self._was_accepted,
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
        return manifests.job_name(spec.step, spec.run_name, spec.key)

    def _follower(self, spec: StepSpec) -> str:
        return followers.follower_name(spec.attempt or self._nameless)

    def _remember(
        self, spec: StepSpec, job: Object, *, adopted: bool, since: str | None = None
    ) -> None:
        name, uid = job["metadata"]["name"], job["metadata"]["uid"]
        known = self._followed.get(name)
        if known is None or known.uid != uid:
            self._followed[name] = Followed(name, uid, adopted, since)

    def _namespace_option(self) -> str:
        return f" -n {self.settings.namespace}" if self.settings.namespace else ""


def _step_of(job: Object) -> str:
    return job["metadata"]["labels"]["app.kubernetes.io/component"]
