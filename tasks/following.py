"""Follow one step on a backend and judge how it ended. Loads no Prefect."""

import contextlib
import dataclasses
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol

from infra.backend import (
    Backend,
    ContactError,
    Notice,
    PlaceError,
    StepEnd,
    StepSpec,
    StillWaiting,
)
from trainer.contract.errors import (
    EXIT_DONE,
    EXIT_REFUSED,
    EXIT_TERMINATED,
    Interrupted,
    RequestError,
    StepError,
)
from trainer.contract.events import Event, format_event, parse_event
from trainer.contract.outcome import Outcome

LAST_LINES = 15


class Watcher(Protocol):
    """Shows a run to a person, or keeps what it says."""

    def started(self, step: str, where: str) -> None:
        """The step was started or adopted; `where` says which, and as what."""

    def line(self, step: str, text: str) -> None:
        """The step printed a line of text."""

    def event(self, step: str, event: Event) -> None:
        """The step printed an event."""

    def ended(self, step: str, outcome: Outcome) -> None:
        """The step is done."""


@contextlib.contextmanager
def claimed(backend: Backend, pvc: str, run_name: str, *, attempt: str = "") -> Iterator[None]:
    """Be the run's only orchestrator while the block runs.

    Its end settles the run, also by an error of a step. A follower that is killed settles nothing:
    the next one resumes from where that one was.

    Raises:
        RequestError: Another one is at it, or the volume can't be used.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(backend.claim(pvc, run_name, attempt=attempt))
        except PlaceError as error:
            raise RequestError(str(error)) from error
        try:
            yield
        except StepError:
            backend.settle(pvc, run_name, failed=True)
            raise
        backend.settle(pvc, run_name, failed=False)


def follow_step(backend: Backend, spec: StepSpec, watchers: list[Watcher]) -> Outcome:
    """Start or adopt the step, follow it to its end, and return what it made.

    Raises:
        RequestError: The request is wrong, or other work is in the way.
        Interrupted: It was stopped after saving: the same request continues.
        StepError: It failed.
    """
    last_lines: deque[str] = deque(maxlen=LAST_LINES)
    submitted = stopped = False

    def take(line: str) -> None:
        about = isinstance(line, Notice)
        line = _by_ctrl_c(line) if stopped and not about else line
        fields = {"message": line, "waiting": isinstance(line, StillWaiting)}
        event = Event("notice", fields) if about else parse_event(line)
        if event is None:
            last_lines.append(line)
        elif event.kind == "notice" and last_lines and last_lines[-1] == event.fields["message"]:
            return  # said as text already
        for watcher in watchers:
            if event is None:
                watcher.line(spec.step, line)
            else:
                watcher.event(spec.step, event)

    try:
        where = backend.submit(spec, on_line=take)
        submitted = True
        for watcher in watchers:
            watcher.started(spec.step, where)
        end = backend.wait(spec, take)
    except PlaceError as error:
        raise (StepError if submitted else RequestError)(str(error)) from error
    except ContactError as error:
        raise StepError(str(error)) from error
    except KeyboardInterrupt:
        if backend.detaches:
            raise Interrupted(f"the {spec.step} step continues. {backend.hint(spec)}") from None
        if not submitted:
            backend.cancel(spec, on_line=take)  # it may be there all the same
            again = f"interrupted as the {spec.step} step started. Run it again to resume."
            raise Interrupted(again) from None
        stopped = True
        end = _stop(backend, spec, take)
    outcome = _judge(spec, end, last_lines, stopped=stopped, detaches=backend.detaches)
    for watcher in watchers:
        watcher.ended(spec.step, outcome)
    return outcome


def _stop(backend: Backend, spec: StepSpec, take: Callable[[str], None]) -> StepEnd:
    """Ctrl-C: the step saves and ends; a second one ends it at once."""
    message = "stopping: the step saves first (Ctrl-C again ends it at once)"
    take(format_event("notice", {"message": message}))
    try:
        backend.cancel(spec, on_line=take)
    except KeyboardInterrupt:
        backend.kill(spec)
        killed = backend.wait(spec, take)
        at_once = "ended at once, as Ctrl-C came twice: what was not saved is done again"
        return dataclasses.replace(killed, outcome=None, reason=at_once)
    return backend.wait(spec, take)


def _by_ctrl_c(text: str) -> str:
    """What a step says of the signal that it was sent, in the words of who pressed the keys."""
    return text.replace("stopped by SIGTERM", "stopped by Ctrl-C")


def _judge(
    spec: StepSpec, end: StepEnd, last_lines: deque[str], *, stopped: bool, detaches: bool
) -> Outcome:
    """The outcome of a step that is done, or the error that says why it is not."""
    outcome = Outcome.from_values(end.outcome) if end.outcome else None
    if end.exit_code == EXIT_DONE and outcome is not None and outcome.status == "done":
        return outcome
    message = outcome.message if outcome else end.reason or "ended"
    said = [line for line in last_lines if line not in message.splitlines()]
    shown = ["Its last lines:", *(f"    {line}" for line in said)] if said else []
    shown.append(f"The whole log: {end.log}")
    if end.exit_code == EXIT_REFUSED:
        # On this machine what is wrong is found before anything starts, and is said alone.
        found = [f"The {spec.step} step{_of_run(spec)} found this.", *shown]
        found.append("Mend it and run the same again.")
        raise RequestError(*message.splitlines(), found=found if detaches else ())
    if end.exit_code == EXIT_TERMINATED or stopped:
        message = _by_ctrl_c(message) if stopped else message
        raise Interrupted(f"the {spec.step} step was {message}. Run it again to resume.")
    failed = f"the {spec.step} step{_of_run(spec)} failed: {message}"
    raise StepError(
        "\n".join(
            [failed, *shown, "Correct the cause and run it again: it resumes from what is done."]
        )
    )


def _of_run(spec: StepSpec) -> str:
    """Which run's step it is, in words; that of `finetune tokenize` is no run's."""
    return f" of {spec.run_name!r}" if spec.run_name else ""
