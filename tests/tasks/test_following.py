"""Follow a real process to its end, interrupted where a person may interrupt."""

from typing import Any

import pytest

from infra.local_processes import LocalBackend
from tasks.following import follow_step
from tests.infra.test_local_processes import PVC, backend, home, spec  # noqa: F401 - fixtures
from trainer.errors import Interrupted


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
    with pytest.raises(Interrupted, match="Run it again to go on"):
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
    with pytest.raises(Interrupted, match="Run it again to go on"):
        follow_step(backend, spec(until="go"), [])
    assert backend.running_steps(PVC, "run") == []
