"""Run one step as part of a Prefect task: its text and events go to the run's log and page."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import psutil
from prefect.exceptions import TerminationSignal
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from infra.backend import Backend, Seen, StepSpec
from tasks.artifacts import SERVER_ERRORS, ProgressArtifact, show_report
from tasks.cancelling import (
    CancelledInPrefect,
    flow_runs,
    is_cancelled,
    is_supervised,
    told_of_cancel,
)
from tasks.following import Watcher, follow_step
from tasks.log_rate import LineRate
from tasks.training_pictures import TrainingPictures
from tasks.waiting import tell_of_waiting
from trainer.contract import run_files
from trainer.contract.events import Event
from trainer.contract.json_files import read_lines
from trainer.contract.outcome import Outcome
from trainer.contract.run_folder import RunFolder
from trainer.contract.wording import describe_progress

# The server and a reader of the log can take this much of a bar that moves all the time.
PROGRESS_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run of the flow: what was asked, and where its steps run."""

    parameters: Mapping[str, Any]
    request: Mapping[str, Any]  # the parameters that define the run
    attempt: str  # the flow run's id
    backend: Backend
    listing: str = ""  # of the dataset: steps list an object store once under one name
    paranoid: bool = False  # the tokenize step reads every file again
    nodes: int = 1  # machines that train together
    grace_seconds: float = 120.0  # from SIGTERM to the kill
    watcher: Watcher | None = None
    outcomes: list[Outcome] = field(default_factory=list)
    plan: dict[str, Any] = field(default_factory=dict)  # as it was made before anything began
    began: float = field(default_factory=lambda: psutil.Process().create_time())  # of us: Unix time

    @property
    def run_name(self) -> str:
        return self.parameters["run_name"]

    @property
    def digests(self) -> dict[str, str]:
        """What the steps so far saw or made on the volume, by name; the newest of each."""
        known: dict[str, str] = {}
        for outcome in self.outcomes:
            known |= outcome.result.get("digests", {})
        return known

    def seen(self, name: str) -> Seen | None:
        """What the fetch step saw of a later step's result, whose digest has that name."""
        for outcome in self.outcomes:
            if outcome.step == "fetch" and name in outcome.result.get("digests", {}):
                digests = {name: outcome.result["digests"][name]}
                return Seen(digests=digests, at=outcome.started)
        return None

    @property
    def volume_folder(self) -> RunFolder | None:
        """The run's folder, where its follower has the volume: on this machine."""
        volume = self.backend.volume(self.parameters["pvc"])
        return RunFolder(volume, self.run_name) if volume else None

    def on_volume(self, path: str) -> str:
        """A path on the volume: absolute, where the steps have it."""
        return f"{self.backend.mount(self.parameters['pvc'])}/{path}"

    @property
    def curves(self) -> str:
        """TensorBoard's folder."""
        return self.on_volume(f"{self.parameters['logs']}/{self.run_name}/tensorboard")


class PrefectWatcher:
    """Keeps what a step says in the log of its task run, and its progress as an artifact."""

    def __init__(self, run_name: str, pictures: TrainingPictures) -> None:
        self._run_name, self._pictures = run_name, pictures
        self._logger = get_run_logger()
        self._next_progress = 0.0
        self._progress: ProgressArtifact | None = None
        self._said = ""
        self._rate = LineRate()
        self._told_not_shown = False

    def started(self, step: str, where: str) -> None:
        self._progress = ProgressArtifact(f"{self._run_name}-{step}")
        self._logger.info("%s: %s", step, where)

    def line(self, step: str, text: str) -> None:
        self._said = text
        if self._rate.passes():
            self._tell_left_out()
            self._logger.info("%s", text)

    def event(self, step: str, event: Event) -> None:
        if event.kind == "notice":
            self._logger.info("%s", event.fields.get("message", ""))
            if event.fields.get("waiting"):
                tell_of_waiting(self._run_name, step, event.fields["message"])
        elif event.kind == "report":
            show_report(f"{self._run_name}-{step}", **event.fields)
        elif event.kind == "metric":
            self._show(lambda: self._pictures.metric(event.fields))
        elif event.kind == "sample":
            self._pictures.sample(event.fields)
        elif event.kind == "progress" and time.monotonic() >= self._next_progress:
            self._next_progress = time.monotonic() + PROGRESS_SECONDS
            self._logger.info("%s", describe_progress(event.fields))
            assert self._progress is not None
            progress = self._progress
            self._show(lambda: progress.show(event.fields))

    def ended(self, step: str, outcome: Outcome) -> None:
        self._tell_left_out()
        if step == "finetune":
            self._show(self._pictures.show)
        if outcome.message not in ("", self._said):
            self._logger.info("%s: %s", step, outcome.message)

    def _show(self, show: Callable[[], None]) -> None:
        """A server that takes no picture now ends no training; said once."""
        try:
            show()
        except SERVER_ERRORS as error:
            if not self._told_not_shown:
                self._logger.warning("Prefect's UI does not show all of this step: %s", error)
            self._told_not_shown = True

    def _tell_left_out(self) -> None:
        if words := self._rate.left_out():
            self._logger.info("%s", words)


def run_step(run: Run, spec: StepSpec) -> Outcome:
    """Follow the step to its end within a task; see `follow_step` for its errors."""
    folder = run.volume_folder if spec.step == "finetune" else None
    earlier = (
        [
            read_lines(folder.metrics, run_files.Metric),
            read_lines(folder.samples, run_files.Sample),
        ]
        if folder
        else [(), ()]
    )
    pictures = TrainingPictures(run.run_name, run.plan.get("steps"), *earlier)
    watchers: list[Watcher] = [PrefectWatcher(run.run_name, pictures)]
    if run.watcher is not None:
        watchers.append(run.watcher)
    with told_of_cancel():
        outcome = follow_step(run.backend, spec, watchers)
    run.outcomes.append(outcome)
    return outcome


@contextlib.contextmanager
def cancelled_with_its_steps(run: Run) -> Iterator[None]:
    """Around the tasks of a flow: a cancel ends the run's steps, any other end leaves them.

    Also those that an earlier attempt of the flow run left running, and that this one does
    not follow yet.

    Raises:
        CancelledInPrefect: It was cancelled, and no supervisor ends the flow run.
    """
    try:
        yield
    except TerminationSignal:
        # A worker that cancels and a machine that goes away send the same signal; only the
        # server knows which it was. Without a cancel the step continues without us.
        if not is_cancelled():
            raise
        ended = run.backend.stop(
            run.parameters["pvc"],
            run.run_name,
            attempts=[run.attempt],
            on_line=get_run_logger().info,
        )
        if is_supervised():
            raise
        raise CancelledInPrefect(_what_ended(ended), flow_runs()) from None


def _what_ended(steps: list[str]) -> str:
    what = f"the {' and '.join(steps)} step has saved and ended" if steps else "no step was running"
    return f"cancelled in Prefect: {what}. Run it again to resume."


_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


def current_watcher() -> Watcher | None:
    """What watches the flow runs of this context, if anything does."""
    return _watcher.get()


def watch_with(watcher: Watcher) -> None:
    """Have the flow runs of this context shown by `watcher`."""
    _watcher.set(watcher)


_compared: ContextVar[bool] = ContextVar("compared", default=False)


def only_compared() -> bool:
    """Whether the flow runs of this context are made to compare their losses."""
    return _compared.get()


@contextlib.contextmanager
def compared_by_loss() -> Iterator[None]:
    """Have the flow runs of the block start no server only to show that they can be served."""
    before = _compared.set(True)
    try:
        yield
    finally:
        _compared.reset(before)


_listing: ContextVar[str] = ContextVar("listing", default="")


def current_listing() -> str:
    """The listing that this run of the flow shares: its caller's, else of this attempt alone."""
    # What is tried again may be tried because the dataset was mended.
    return _listing.get() or f"{flow_run.get_id()}-{flow_run.get_run_count()}"


_paranoid: ContextVar[bool] = ContextVar("paranoid", default=False)


def is_paranoid() -> bool:
    """Whether the tokenize step of this context's flow runs reads every file again."""
    return _paranoid.get()


@contextlib.contextmanager
def reading_everything(paranoid: bool) -> Iterator[None]:
    """Have the tokenize step of the block's flow runs trust no file's size and times."""
    before = _paranoid.set(paranoid)
    try:
        yield
    finally:
        _paranoid.reset(before)


@contextlib.contextmanager
def sharing_listing(name: str) -> Iterator[None]:
    """Have the flow runs of the block list an object store once, under a name they share."""
    before = _listing.set(name)
    try:
        yield
    finally:
        _listing.reset(before)
