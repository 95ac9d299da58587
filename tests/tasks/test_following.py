"""Follow a real process to its end, interrupted where a person may interrupt."""

import dataclasses
from typing import Any

import pytest

from infra.backend import StepEnd
from infra.local.processes import LocalBackend
from tasks.following import follow_step
from tests.infra.test_local_processes import PVC, backend, home, spec  # noqa: F401 - fixtures
from trainer.contract.errors import Interrupted


class InterruptedWhileShown:
    """A person presses Ctrl-C while the first line about the step is printed."""

    def started(self, step: str, where: str) -> None:
        raise KeyboardInterrupt

    def line(self, step: str, text: str) -> None: ...
    def event(self, step: str, event: Any) -> None: ...
    def ended(self, step: str, outcome: Any) -> None: ...


def test_ctrl_c_right_after_the_start_stops_the_step(
    backend: LocalBackend,  # noqa: F811
) -> None:
    with pytest.raises(Interrupted, match="Run it again to resume"):
        follow_step(backend, spec(until="go"), [InterruptedWhileShown()])
    assert backend.running_steps(PVC, "run") == []


@pytest.mark.parametrize("started", [False, True])
def test_ctrl_c_during_the_start_leaves_nothing_running(
    backend: LocalBackend,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    started: bool,
) -> None:
    submit = backend.submit

    def interrupted(step: Any, **options: Any) -> str:
        if started:
            submit(step)
        raise KeyboardInterrupt

    monkeypatch.setattr(backend, "submit", interrupted)
    with pytest.raises(Interrupted, match="Run it again to resume"):
        follow_step(backend, spec(until="go"), [])
    assert backend.running_steps(PVC, "run") == []


class InterruptedAndHeard(InterruptedWhileShown):
    """Ctrl-C as the step starts; keeps the lines that are shown after it."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, step: str, text: str) -> None:
        self.lines.append(text)


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        ("stopped by SIGTERM after step 3 of 9", "was stopped by Ctrl-C after step 3 of 9. Run"),
        ("stopped by SIGTERM before it could save", "was stopped by Ctrl-C before it could"),
    ],
)
def test_after_ctrl_c_it_says_ctrl_c(
    backend: LocalBackend,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    outcome: str,
    words: str,
) -> None:
    wait = backend.wait

    def waiting(step: Any, on_line: Any) -> StepEnd:
        end = wait(step, on_line)
        on_line(outcome)
        left = {"step": "finetune", "status": "interrupted", "message": outcome}
        return dataclasses.replace(end, exit_code=143, outcome=left)

    monkeypatch.setattr(backend, "wait", waiting)
    watcher = InterruptedAndHeard()
    with pytest.raises(Interrupted, match=words) as ended:
        follow_step(backend, spec(until="go"), [watcher])
    assert "SIGTERM" not in str(ended.value) + "".join(watcher.lines)


def test_a_second_ctrl_c_ends_the_step_at_once_and_says_so(
    backend: LocalBackend,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def cancel(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(backend, "cancel", cancel)
    with pytest.raises(Interrupted, match="ended at once, as Ctrl-C came twice"):
        follow_step(backend, spec(until="never"), [InterruptedAndHeard()])
    assert backend.running_steps(PVC, "run") == []
