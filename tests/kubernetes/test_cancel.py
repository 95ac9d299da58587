"""Who cancels takes the Job along, unless somebody else follows it."""

import subprocess
import sys
import threading
from pathlib import Path

from infra.kubernetes_backend.followers import MARK, heartbeat
from infra.kubernetes_backend.jobs import KubernetesBackend
from tests.kubernetes.conftest import CLAIM, backend_with, spec, starts
from tests.kubernetes_double.cluster import Cluster
from tests.kubernetes_double.faults import Request


def test_cancel_lets_the_step_save_and_returns_when_job_and_pods_are_gone(
    backend: KubernetesBackend, cluster: Cluster, volume: Path
) -> None:
    step = spec(until="never")
    backend.submit(step)
    cluster.wait_for(lambda: starts(volume))
    ends, lines = [], []
    follower = threading.Thread(target=lambda: ends.append(backend.wait(step, lines.append)))
    follower.start()
    cluster.wait_for(lambda: backend._followed["run-finetune-01234567"].positions)
    backend.cancel(step)
    assert cluster.jobs() == cluster.pods() == []
    follower.join()
    [end] = ends
    assert (end.exit_code, end.reason) == (
        143,
        "stopped: Job run-finetune-01234567 was deleted",
    )
    assert lines[-1] == "last line of start 1"  # it was asked, not killed


def test_cancelling_one_of_two_flow_runs_leaves_the_job_to_the_other(
    backend: KubernetesBackend, cluster: Cluster, volume: Path, tmp_path: Path
) -> None:
    one, two = spec(until="go", attempt="flow-run-1"), spec(until="go", attempt="flow-run-2")
    backend.submit(one)
    other = backend_with(tmp_path)
    other.submit(two)
    said: list[str] = []
    backend.cancel(one, on_line=said.append)
    assert said == ["Job run-finetune-01234567 is left to who else follows it: flow-run-2"]
    (volume / "go").touch()
    assert other.wait(two, lambda line: None).outcome["status"] == "done"
    assert starts(volume) == 1


def test_a_job_adopted_in_the_moment_of_a_cancel_is_left_alone(
    backend: KubernetesBackend, cluster: Cluster, volume: Path
) -> None:
    one = spec(until="go", attempt="flow-run-1")
    backend.submit(one)

    def adopt(request: Request, number: int) -> None:
        if request.verb == "delete" and request.resource == "jobs":
            job = cluster.store.get("jobs", "default", request.name)
            job["metadata"]["annotations"] |= heartbeat("flow-run-2")
            cluster.store.update("jobs", job)

    cluster.faults.before_request = adopt
    backend.cancel(one)
    [job] = cluster.jobs()
    assert "deletionTimestamp" not in job["metadata"]


def test_a_follower_that_was_killed_long_ago_holds_nothing(
    backend: KubernetesBackend, cluster: Cluster, volume: Path
) -> None:
    one = spec(until="go", attempt="flow-run-1")
    backend.submit(one)
    [job] = cluster.jobs()
    job["metadata"]["annotations"][f"{MARK}flow-run-2"] = "2026-01-01T00:00:00Z"
    cluster.do(lambda: cluster.store.update("jobs", job))
    backend.cancel(one)
    assert cluster.jobs() == []


def test_the_last_one_who_cancels_takes_the_job_with_him(
    backend: KubernetesBackend, cluster: Cluster, volume: Path, tmp_path: Path
) -> None:
    one, two = spec(until="go", attempt="flow-run-1"), spec(until="go", attempt="flow-run-2")
    backend.submit(one)
    backend_with(tmp_path).submit(two)
    backend.cancel(two)
    assert len(cluster.jobs()) == 1
    backend.cancel(one)
    assert cluster.jobs() == cluster.pods() == []


def test_what_several_attempts_followed_is_theirs_to_stop_together(
    backend: KubernetesBackend, cluster: Cluster, volume: Path, tmp_path: Path
) -> None:
    backend.submit(spec(until="never", attempt="flow-run-1"))
    backend_with(tmp_path).submit(spec(until="never", attempt="flow-run-2"))
    other, said = backend_with(tmp_path), []
    assert other.stop(CLAIM, "run", attempts=["flow-run-1"], on_line=said.append) == []
    assert said == ["Job run-finetune-01234567 is left to who else follows it: flow-run-2"]
    assert other.stop(CLAIM, "run", attempts=["flow-run-1", "flow-run-2"]) == ["finetune"]
    assert cluster.jobs() == cluster.pods() == []


def test_stop_ends_every_step_of_the_run_whoever_follows_it(
    backend: KubernetesBackend, cluster: Cluster, volume: Path, tmp_path: Path
) -> None:
    backend.submit(spec(until="never", attempt="flow-run-1"))
    other = backend_with(tmp_path)
    assert other.running_steps("finetune-data", "run") == ["finetune"]
    assert other.stop("finetune-data", "run") == ["finetune"]
    assert other.running_steps("finetune-data", "run") == []
    assert cluster.jobs() == cluster.pods() == []


def test_the_command_line_stops_a_run_on_the_cluster(
    backend: KubernetesBackend, cluster: Cluster, volume: Path
) -> None:
    backend.submit(spec(until="never"))
    stop = [sys.executable, "-m", "flows.cli", "stop", "run", "--backend", "kubernetes"]
    done = subprocess.run(stop, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "stopped: finetune\n"), done.stderr
    assert "Job run-finetune-01234567 is being deleted: its step saves" in done.stderr
    assert cluster.jobs() == cluster.pods() == []
    again = subprocess.run(stop, capture_output=True, text=True)
    assert (again.returncode, again.stdout) == (0, "run: nothing was running\n")
    cluster.faults.allowed = lambda request: request.verb != "list"
    refused = subprocess.run(stop, capture_output=True, text=True)
    assert refused.returncode == 78
    assert "your account may not list jobs.batch" in refused.stderr
