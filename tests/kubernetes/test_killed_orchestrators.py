"""kill -9 of the orchestrator at each request that it makes, then another one: one Job."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kubernetes.conftest import CLAIM, spec, starts
from tests.kubernetes_double.cluster import Cluster

ROOT = Path(__file__).parents[2]


class Orchestrators:
    """Processes that drive the backend, one after the other."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self._cluster, self._folder = cluster, folder
        self._zygote = subprocess.Popen(
            [sys.executable, "-m", "tests.kubernetes.orchestrators"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        self._requests = 0

    def run(
        self, action: str, run_name: str, *, kill_at: int = 0, before: bool = True, **config: Any
    ) -> dict[str, Any] | None:
        """How it ended; None if it was killed, at its request number `kill_at`."""
        result = self._folder / "result.json"
        result.unlink(missing_ok=True)
        step = {
            "step": "finetune",
            "run_name": run_name,
            "volume": CLAIM,
            "config": {**config, "starts": f"starts-{run_name}"},
            "key": "0123456789abcdef",
            "attempt": "flow-run-1",
            "image": "finetune-steps:0.1.0",
        }
        order = {"action": action, "step": step, "result": str(result)}
        order["volumes"] = str(self._folder)
        assert self._zygote.stdin is not None
        pid: list[int] = []

        def kill(*_: Any) -> None:
            self._requests += 1
            if self._requests == kill_at:
                self._cluster_sees_pid(pid)
                os.kill(pid[0], signal.SIGKILL)

        self._requests = 0
        faults = self._cluster.faults
        faults.before_request = kill if before else lambda *_: None
        faults.after_request = kill if not before else lambda *_: None
        print(json.dumps(order), file=self._zygote.stdin, flush=True)
        pid.append(self._read("started"))
        self._read("ended")
        faults.before_request = faults.after_request = lambda *_: None
        with contextlib.suppress(FileNotFoundError):
            return json.loads(result.read_text())
        return None

    def _cluster_sees_pid(self, pid: list[int]) -> None:
        while not pid:  # the request may come before the process id
            os.sched_yield()

    def _read(self, word: str) -> int:
        assert self._zygote.stdout is not None
        said, pid = self._zygote.stdout.readline().split()
        assert said == word
        return int(pid)

    def close(self) -> None:
        assert self._zygote.stdin is not None
        self._zygote.stdin.close()
        self._zygote.wait()


@pytest.fixture
def orchestrators(cluster: Cluster, tmp_path: Path) -> Iterator[Orchestrators]:
    made = Orchestrators(cluster, tmp_path)
    yield made
    made.close()


def jobs_made(cluster: Cluster, run_name: str) -> int:
    return sum(
        what == "ADDED" and kind == "jobs" and job["metadata"]["name"].startswith(run_name)
        for _, what, kind, job in cluster.history()
    )


@pytest.mark.parametrize("before", [True, False], ids=["unanswered", "answered"])
def test_killed_at_each_request_and_started_again_there_is_one_job(
    cluster: Cluster, volume: Path, orchestrators: Orchestrators, before: bool
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
    cluster: Cluster, volume: Path, orchestrators: Orchestrators, before: bool
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
    cluster: Cluster, volume: Path, orchestrators: Orchestrators
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
        "                config={'until': 'go', 'lines': ['begins']}, image='i')\n"
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
            assert "It goes on as Job run-finetune-01234567" in said
        assert [pod["status"]["phase"] for pod in cluster.pods()] == ["Running"]
    assert starts(volume) == 1
