"""kill -9 of the orchestrator at each request that it makes, then another one: one Job."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kubernetes.conftest import CLAIM, spec, starts
from tests.kubernetes.orchestrators import ROOT, Orchestrators
from tests.kubernetes_double.cluster import Cluster


class Stepwise(Orchestrators):
    """Orchestrators of one step each, by the name of their run."""

    def run(
        self, action: str, run_name: str, *, kill_at: int = 0, before: bool = True, **config: Any
    ) -> dict[str, Any] | None:
        """How it ended; None if it was killed, at its request number `kill_at`."""
        step = {
            "step": "finetune",
            "run_name": run_name,
            "volume": CLAIM,
            "config": {**config, "starts": f"starts-{run_name}"},
            "key": "0123456789abcdef",
            "attempt": "flow-run-1",
            "image": "finetune-steps:0.2.0",
        }
        where = {"volumes": str(self.folder)}
        return self.call(action, kill_at=kill_at, before=before, step=step, **where)


@pytest.fixture
def orchestrators(cluster: Cluster, tmp_path: Path) -> Iterator[Stepwise]:
    with Stepwise(cluster, tmp_path, "tests.kubernetes.one_step") as made:
        yield made


def jobs_made(cluster: Cluster, run_name: str) -> int:
    return sum(
        what == "ADDED" and kind == "jobs" and job["metadata"]["name"].startswith(run_name)
        for _, what, kind, job in cluster.history()
    )


@pytest.mark.parametrize("before", [True, False], ids=["unanswered", "answered"])
def test_killed_at_each_request_and_started_again_there_is_one_job(
    cluster: Cluster, volume: Path, orchestrators: Stepwise, before: bool
) -> None:
    for number in range(1, 40):
        name = f"at-{number}"
        if orchestrators.run("run", name, kill_at=number, before=before) is not None:
            break
        end = orchestrators.run("run", name)
        assert end is not None and end["outcome"]["status"] == "done"
        assert jobs_made(cluster, f"{name}-") == 1
        assert len((volume / f"starts-{name}").read_text().split()) == 1
    assert number > 5


@pytest.mark.parametrize("before", [True, False], ids=["unanswered", "answered"])
def test_killed_at_each_request_of_a_cancel_the_next_one_finishes_it(
    cluster: Cluster, volume: Path, orchestrators: Stepwise, before: bool
) -> None:
    for number in range(1, 40):
        name = f"at-{number}"
        assert orchestrators.run("run", name, kill_at=5, until="never") is None
        if orchestrators.run("cancel", name, kill_at=number, before=before) is not None:
            break
        orchestrators.run("cancel", name)
        assert cluster.jobs() == cluster.pods() == []
    assert cluster.jobs() == cluster.pods() == []
    assert number > 2


def test_a_failed_job_is_replaced_once_however_often_the_orchestrator_is_killed(
    cluster: Cluster, volume: Path, orchestrators: Stepwise
) -> None:
    for number in range(2, 8):  # asking why it failed, deleting, waiting, creating anew
        name = f"at-{number}"
        end = orchestrators.run("run", name, exit_codes=[78, 0])
        assert end is not None and end["exit_code"] == 78
        assert orchestrators.run("run", name, kill_at=number, exit_codes=[78, 0]) is None
        end = orchestrators.run("run", name, exit_codes=[78, 0])
        assert end is not None and end["outcome"]["status"] == "done"
        assert jobs_made(cluster, f"{name}-") == 2


def test_sigterm_and_ctrl_c_leave_the_job_running(
    cluster: Cluster, volume: Path, tmp_path: Path
) -> None:
    step = spec(until="go")
    code = (
        "import sys\n"
        "from infra.backend import StepSpec\n"
        "from infra.kubernetes_backend.jobs import KubernetesBackend\n"
        f"step = StepSpec(step='finetune', run_name='run', volume={CLAIM!r}, key={step.key!r},\n"
        "                config={'until': 'go', 'lines': ['begins']},\n"
        "                image='finetune-steps:0.2.0')\n"
        "backend = KubernetesBackend(look_seconds=0.05)\n"
        "backend.submit(step)\n"
        "try: backend.wait(step, lambda line: print(line, flush=True))\n"
        "except KeyboardInterrupt: print(backend.hint(step)); sys.exit(75)\n"
    )
    for signum, exit_code in ((signal.SIGINT, 75), (signal.SIGTERM, -signal.SIGTERM)):
        with subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "begins\n"
            process.send_signal(signum)
            said = process.stdout.read()
        assert process.returncode == exit_code
        if signum == signal.SIGINT:
            assert "It continues as Job run-finetune-01234567" in said
        assert [pod["status"]["phase"] for pod in cluster.pods()] == ["Running"]
    assert starts(volume) == 1
