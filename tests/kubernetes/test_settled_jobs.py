"""Whose outcome is taken: that of a run of the flow that was killed, not of one that ended."""

import dataclasses
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from infra.backend import Resources, StepSpec
from infra.kubernetes_backend.jobs import KubernetesBackend
from tasks.following import claimed, follow_step
from tests.kubernetes.conftest import CLAIM, backend_with, follow, spec, starts
from tests.kubernetes.orchestrators import ROOT
from tests.kubernetes_double.cluster import Cluster
from trainer.contract.errors import StepError

JOB = "run-finetune-01234567"


def looking(**options: Any) -> StepSpec:
    return dataclasses.replace(spec(**options), step="fetch", resources=Resources())


def a_run_of_the_flow(backend: KubernetesBackend, step: StepSpec) -> None:
    with claimed(backend, CLAIM, "run"):
        follow_step(backend, step, [])


def test_a_training_that_was_done_while_two_orchestrators_were_killed_is_not_asked_for_again(
    cluster: Cluster, volume: Path, tmp_path: Path
) -> None:
    for attempt in ("flow-run-1", "flow-run-2"):
        code = (
            "from infra.backend import Resources, StepSpec\n"
            "from infra.kubernetes_backend.jobs import KubernetesBackend\n"
            "from tasks.following import claimed\n"
            f"step = StepSpec(step='finetune', run_name='run', volume={CLAIM!r},\n"
            "    key='0123456789abcdef', config={'until': 'go'}, image='finetune-steps:0.2.0',\n"
            f"    attempt={attempt!r}, resources=Resources(gpu='A40', gpus=1))\n"
            "backend = KubernetesBackend(look_seconds=0.05)\n"
            f"with claimed(backend, {CLAIM!r}, 'run'):\n"
            "    print(backend.submit(step), flush=True)\n"
            "    backend.wait(step, print)\n"
        )
        command = [sys.executable, "-c", code]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
            assert process.stdout is not None
            assert JOB in process.stdout.readline()
            process.send_signal(signal.SIGKILL)
    (volume / "go").touch()
    cluster.wait_for(lambda: "completionTime" in cluster.jobs()[0]["status"])
    third = dataclasses.replace(spec(until="go", attempt="flow-run-3"))
    assert backend_with(tmp_path).submit(third) == f"Job {JOB}, which is done already"
    assert starts(volume) == len(cluster.jobs()) == 1


def test_the_next_run_of_the_flow_has_each_step_look_whether_its_result_still_stands(
    backend: KubernetesBackend, cluster: Cluster, volume: Path, tmp_path: Path
) -> None:
    a_run_of_the_flow(backend, spec(attempt="flow-run-1"))
    same = backend_with(tmp_path).submit(spec(attempt="flow-run-1"))
    assert same.endswith("which is done already")  # killed as it ended: nothing is done again
    assert "made anew" in backend.submit(spec(attempt="flow-run-2"))
    backend.wait(spec(attempt="flow-run-2"), lambda line: None)
    assert (starts(volume), len(cluster.jobs())) == (2, 1)


@pytest.mark.parametrize("attempt", ["flow-run-1", "flow-run-2"])
def test_after_a_failure_data_is_looked_at_again_but_no_gpu_asked_for(
    backend: KubernetesBackend, cluster: Cluster, volume: Path, attempt: str
) -> None:
    trained = spec(attempt="flow-run-1")
    with pytest.raises(StepError, match="no room"), claimed(backend, CLAIM, "run"):
        for step in (looking(attempt="flow-run-1"), trained):
            follow_step(backend, step, [])
        raise StepError("no room")
    assert "done already" in backend.submit(dataclasses.replace(trained, attempt=attempt))
    assert "has failed since" in backend.submit(looking(attempt=attempt))


def test_what_a_killed_run_saw_of_the_data_stands_for_itself_alone(
    backend: KubernetesBackend, cluster: Cluster, volume: Path
) -> None:
    follow(backend, looking(attempt="flow-run-1"))
    assert "done already" in backend.submit(looking(attempt="flow-run-1"))
    assert "may have changed since" in backend.submit(looking(attempt="flow-run-2"))


def test_a_run_that_is_done_does_not_wait_for_a_cluster_that_went_away(
    backend: KubernetesBackend, cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    with claimed(backend, CLAIM, "run"):
        follow_step(backend, spec(), [])
        cluster.faults.allowed = lambda request: request.verb != "patch"
    assert "not marked as settled" in caplog.text
