"""The backend against a cluster: create or adopt, wait, outcome."""

import threading
from pathlib import Path
from typing import Any

import pytest

from infra.backend import BusyError
from infra.kubernetes_backend.jobs import KubernetesBackend
from tests.kubernetes.conftest import backend_with, follow, spec, starts
from tests.kubernetes_double.cluster import Cluster
from tests.kubernetes_double.faults import Request


def test_a_step_runs_as_a_job_and_its_lines_and_outcome_come_back(
    backend: KubernetesBackend, cluster: Cluster, volume: Path
) -> None:
    step = spec(lines=[f"line {i}" for i in range(500)] + ["half\rdrawn\rover"], depth={"a": 1})
    assert backend.submit(step) == "Job run-finetune-01234567"
    lines: list[str] = []
    end = backend.wait(step, lines.append)
    assert lines == [f"line {i}" for i in range(500)] + ["over", "last line of start 1"]
    assert (end.exit_code, end.reason) == (0, "")
    assert end.outcome["status"] == "done"
    assert end.outcome["result"]["config"] == {"depth": {"a": 1}, "volume": str(volume)}
    assert "job-name=run-finetune-01234567" in end.log


def test_the_same_work_is_adopted_while_it_runs(
    backend: KubernetesBackend, cluster: Cluster, volume: Path, tmp_path: Path
) -> None:
    step = spec(until="go")
    backend.submit(step)
    cluster.running_pod()
    other = backend_with(tmp_path)
    assert "already running" in other.submit(step)
    (volume / "go").touch()
    end = other.wait(step, lambda line: None)
    assert end.outcome["status"] == "done"
    assert starts(volume) == len(cluster.jobs()) == 1


def test_two_who_ask_at_the_same_moment_share_one_job(
    cluster: Cluster, volume: Path, tmp_path: Path
) -> None:
    def creates() -> int:
        return [(r.verb, r.resource) for r in cluster.faults.seen].count(("create", "jobs"))

    # Both have looked before either creates.
    cluster.faults.held = lambda asked: asked.verb == "create" and creates() < 2
    said: list[str] = []
    asking = [
        threading.Thread(
            target=lambda: said.append(backend_with(tmp_path).submit(spec(until="go")))
        )
        for _ in range(2)
    ]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join()
    assert creates() == 2
    assert sorted(said) == [
        "Job run-finetune-01234567",
        "Job run-finetune-01234567, which was already running",
    ]
    assert len(cluster.jobs()) == 1


def test_what_is_done_is_not_done_again_for_the_same_run_of_the_flow(
    backend: KubernetesBackend, cluster: Cluster, volume: Path, tmp_path: Path
) -> None:
    first, _ = follow(backend, spec(attempt="flow-run-1"))
    again, _ = follow(backend_with(tmp_path), spec(attempt="flow-run-1"))
    assert again.outcome == first.outcome
    assert starts(volume) == 1


def test_other_work_in_the_same_step_of_the_run_is_refused_while_one_is_under_way(
    backend: KubernetesBackend, cluster: Cluster, volume: Path
) -> None:
    backend.submit(spec(until="go"))
    with pytest.raises(BusyError, match=r"running with other parameters.*stop run"):
        backend.submit(spec("another-key"))
    assert len(cluster.jobs()) == 1


def test_other_work_under_the_same_name_is_refused(
    backend: KubernetesBackend, cluster: Cluster
) -> None:
    follow(backend, spec("01234567-one"))
    with pytest.raises(BusyError, match="Job run-finetune-01234567 was made for other work"):
        backend.submit(spec("01234567-two"))


def test_a_failed_job_is_told_and_made_anew_by_who_asks_again(
    backend: KubernetesBackend, cluster: Cluster, volume: Path, tmp_path: Path
) -> None:
    backend = backend_with(tmp_path, backoff_limit=0)
    step = spec(exit_codes=[9, 0], leaves_nothing=True)
    end, _ = follow(backend, step)
    assert (end.exit_code, end.outcome, end.reason) == (9, None, "exit code 9")
    uid = cluster.jobs()[0]["metadata"]["uid"]
    assert "made anew (the one before had failed: exit code 9)" in backend.submit(step)
    assert backend.wait(step, lambda line: None).exit_code == 0
    [job] = cluster.jobs()
    assert job["metadata"]["uid"] != uid


def test_a_failed_job_that_changes_as_it_is_deleted_is_looked_at_again(
    cluster: Cluster, volume: Path, tmp_path: Path
) -> None:
    backend = backend_with(tmp_path, backoff_limit=0)
    step = spec(exit_codes=[9, 0])
    follow(backend, step)
    deletes: list[Request] = []

    def change(request: Request, number: int) -> None:
        if (request.verb, request.resource) == ("delete", "jobs"):
            deletes.append(request)
            job = cluster.store.get("jobs", "default", request.name)
            job["metadata"]["annotations"]["somebody"] = "was here"
            cluster.store.update("jobs", job)

    cluster.faults.before_request = change
    end, _ = follow(backend, step)
    assert end.outcome["status"] == "done"
    assert len(deletes) == 2  # the second change is none


def test_a_quota_that_somebody_else_changes_meanwhile_refuses_nothing(
    backend: KubernetesBackend, cluster: Cluster
) -> None:
    words = 'Operation cannot be fulfilled on resourcequotas "gpus": the object has been modified'
    cluster.faults.refuse(409, "Conflict", words, verb="create", times=2)
    assert backend.submit(spec()) == "Job run-finetune-01234567"


def test_a_job_that_is_being_deleted_is_waited_for(
    backend: KubernetesBackend, cluster: Cluster, volume: Path, tmp_path: Path
) -> None:
    step = spec(until="go", stops_when="go")
    backend.submit(step)
    cluster.running_pod()
    cluster.wait_for(lambda: starts(volume))
    backend.kill(step)
    said: list[str] = []

    def let_it_end(line: str) -> None:
        said.append(line)
        (volume / "go").touch()

    submitted = backend_with(tmp_path).submit(step, on_line=let_it_end)
    assert submitted == "Job run-finetune-01234567"
    assert said == ["Job run-finetune-01234567 is being deleted: waiting until its pods have ended"]
    cluster.wait_for(lambda: starts(volume) == 2)
    changes = [(what, kind) for _, what, kind, _ in cluster.history()]
    first_pod_gone = changes.index(("DELETED", "pods"))
    second_job_made = [i for i, change in enumerate(changes) if change == ("ADDED", "jobs")][1]
    assert first_pod_gone < second_job_made  # never two writers


def test_the_outcome_of_a_done_job_whose_pod_is_gone_comes_from_the_volume(
    backend: KubernetesBackend, cluster: Cluster, volume: Path, tmp_path: Path
) -> None:
    follow(backend, spec())
    for pod in cluster.pods():
        cluster.do(lambda pod=pod: cluster.store.remove("pods", pod))
    (volume / "run/outcomes").mkdir(parents=True)
    (volume / "run/outcomes/finetune.json").write_text('{"step": "finetune", "status": "done"}')
    end, _ = follow(backend_with(tmp_path), spec())
    assert (end.exit_code, end.outcome["status"]) == (0, "done")
    assert starts(volume) == 1


def test_a_done_job_whose_outcome_is_lost_is_made_anew(
    backend: KubernetesBackend, cluster: Cluster, volume: Path, tmp_path: Path
) -> None:
    follow(backend, spec())
    for pod in cluster.pods():
        cluster.do(lambda pod=pod: cluster.store.remove("pods", pod))
    end, _ = follow(backend_with(tmp_path), spec())
    assert end.outcome["status"] == "done"
    assert starts(volume) == 2


def test_a_failure_is_not_explained_by_what_an_earlier_try_left(
    cluster: Cluster, volume: Path, tmp_path: Path
) -> None:
    backend = backend_with(tmp_path, backoff_limit=1)
    step = spec(until="go-{start}", exit_codes=[5])
    backend.submit(step)
    lines: list[str] = []

    def take(line: str) -> None:
        lines.append(line)
        if line == "last line of start 1":
            pod = cluster.wait_for(
                lambda: next(
                    (p for p in cluster.pods() if starts(volume) == 2 and "running" in state(p)),
                    None,
                )
            )
            cluster.do(lambda: cluster.kubelet.kill_for_memory(pod))

    (volume / "go-1").touch()
    end = backend.wait(step, take)
    assert (end.exit_code, end.outcome) == (137, None)
    assert end.reason.startswith("out of memory")
    assert end.reason.endswith("(the last of 2 tries)")


def state(pod: dict[str, Any]) -> dict[str, Any]:
    return pod["status"].get("containerStatuses", [{"state": {}}])[0]["state"]
