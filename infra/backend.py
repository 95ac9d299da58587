"""The protocol by which a step is run somewhere, and the plain data it speaks.

Idempotent per step, run and key: a second request for work that is running
adopts it, so a step outlives the orchestrator that started it.
"""

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from infra.serving_place import Line, ServingPlace


class Notice(str):
    """A line about a step from the place where it runs, not of the step's own."""

    __slots__ = ()


class StillWaiting(Notice):
    """A notice that a step has waited for long to start; repeated while it waits."""

    __slots__ = ()


def unheard(line: str) -> None:
    """Takes the lines of who has nobody to tell."""


class PlaceError(Exception):
    """The place where steps run can't take this one; nothing was started."""


class ContactError(Exception):
    """The place could not be reached for long, or no longer takes us; the step continues."""


class BusyError(PlaceError):
    """Other work, or another orchestrator, is where this one wants to be."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a step asks of the machine it runs on; ignored by local processes."""

    gpu: str = ""  # GPU class as the cluster labels it; empty: none
    gpus: int = 0
    cores: int = 1
    memory_gib: int = 4
    nodes: int = 1  # machines, each with all of the above
    light: bool = False  # a step that reads, hashes and encodes: the cluster's settings size it


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a step of this flow run saw of the work's result on the volume.

    The outcome of a finished Job is taken only while its result is still there.
    """

    digests: Mapping[str, str]  # of `digests` in the outcome's result; empty: it is not there
    at: str  # UTC, ISO 8601: what was made later could not be seen


@dataclass(frozen=True, kw_only=True)
class StepSpec:
    """One piece of work: what to run, for whom, and with what."""

    step: str
    run_name: str
    volume: str  # the parameter `pvc`
    config: Mapping[str, Any]  # JSON for `python -m trainer STEP`; `volume` is filled in
    key: str = ""  # what defines the work; see trainer/contract/work_key.py
    attempt: str = ""  # who asks (a flow run's id): the same asker may take an outcome as it is
    resources: Resources = field(default_factory=Resources)
    image: str = ""
    region: str = ""
    secrets: tuple[str, ...] = ()  # Kubernetes Secrets whose keys become environment variables
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)  # of local processes
    seen: "Seen | None" = None


@dataclass(frozen=True, kw_only=True)
class StepEnd:
    """How a step ended, as seen by the backend that ran it."""

    exit_code: int
    outcome: Mapping[str, Any] | None  # the termination message, if the step left one
    reason: str = ""  # the diagnosis where there is no outcome: killed, out of memory, ...
    log: str = ""  # where the full log is


class Backend(Protocol):
    """Somewhere to run steps."""

    detaches: bool
    """Whether a step continues when its follower is interrupted (Ctrl-C, SIGTERM)."""

    def volume(self, pvc: str) -> Path | None:
        """The volume's root, where this process has it; None: only the steps have it."""

    def mount(self, pvc: str) -> Path:
        """The volume's root as the steps have it."""

    def serving(self, kind: str) -> ServingPlace | None:
        """Where revisions of services are kept; `kind` as the parameter `serving` has it.

        None: a service is a process beside this one, and the deploy step starts it itself.
        """

    def stop_service(self, pvc: str, run_name: str, *, kind: str = "") -> bool:
        """Have the run's service end when it has answered what it has; whether there was one.

        Raises:
            PlaceError: It was told to, and the volume can't be written, or the place was not there.
        """

    def claim(self, pvc: str, run_name: str, *, attempt: str = "") -> AbstractContextManager[None]:
        """Be the run's only orchestrator where the place does not see to that by itself.

        Of the same `attempt` a second one waits until the first has ended.
        """

    def settle(self, pvc: str, run_name: str, *, failed: bool) -> None:
        """The run of the flow is over: what its steps saw no longer stands for another one."""

    def submit(self, spec: StepSpec, *, on_line: Line = unheard) -> str:
        """Start the step, or adopt the same work where it is running; return its name."""

    def wait(self, spec: StepSpec, on_line: Line) -> StepEnd:
        """Hand over the step's lines as they come, each once, until it ends."""

    def cancel(self, spec: StepSpec, *, on_line: Line = unheard) -> None:
        """Stop the step, letting it save first; return when it is gone."""

    def stop(
        self,
        pvc: str,
        run_name: str,
        *,
        attempts: Collection[str] = (),
        on_line: Line = unheard,
    ) -> list[str]:
        """Cancel every step of the run that is running; return their names.

        Steps with any follower; with `attempts`, only those that no other attempt follows.
        """

    def hint(self, spec: StepSpec) -> str:
        """How a person follows the step again or cancels it, for who detaches from it."""

    def kill(self, spec: StepSpec) -> None:
        """End the step at once, without letting it save."""
