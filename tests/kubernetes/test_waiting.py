"""What keeps a Job from running is told in the cluster's words; only its end ends the wait."""

import copy
import dataclasses
import json
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infra.backend import StillWaiting
from infra.kubernetes_backend import watching
from infra.kubernetes_backend.jobs import KubernetesBackend
from infra.kubernetes_backend.manifests_job import RAN_ANNOTATION
from tasks.specs import step_spec
from tests.kubernetes.conftest import CLAIM, backend_with, follow, spec, starts
from tests.kubernetes_double.cluster import Cluster
from trainer.contract.parameters import Parameters
from trainer.contract.validation import load_parameters


def follow_beside(
    backend: KubernetesBackend, step: Any, ends: list[Any] | None = None
) -> tuple[threading.Thread, list, list]:
    backend.submit(step)
    lines: list[str] = []
    ends = [] if ends is None else ends
    thread = threading.Thread(target=lambda: ends.append(backend.wait(step, lines.append)))
    thread.start()
    return thread, lines, ends


def told(cluster: Cluster, lines: list[str], words: str) -> None:
    cluster.wait_for(lambda: any(words in line for line in lines))


def mended_then_done(
    backend: KubernetesBackend, cluster: Cluster, words: str, mend: Any, step: Any = None
) -> None:
    """The words are told once; after mending the step runs to its end."""
    thread, lines, ends = follow_beside(backend, step or spec())
    told(cluster, lines, words)
    mend()
    thread.join()
    assert ends and ends[0].outcome["status"] == "done"
    assert len([line for line in lines if words in line]) == 1, lines
    assert lines[0].startswith("job run-finetune-01234567: waiting: ")


def test_no_node_with_such_a_gpu(backend: KubernetesBackend, cluster: Cluster) -> None:
    cluster.node.gpus = 0
    words = "waiting: Unschedulable: 0/1 nodes are available: 1 Insufficient nvidia.com/gpu"
    mended_then_done(backend, cluster, words, lambda: setattr(cluster.node, "gpus", 8))


def test_a_long_wait_is_told_again_with_its_reason_and_its_beginning(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "REMIND_SECONDS", 0.5)
    cluster.node.gpus = 0
    backend = backend_with(tmp_path, pending_timeout_seconds=7200)
    thread, lines, _ = follow_beside(backend, spec())
    [job] = cluster.jobs()
    began = job["metadata"]["creationTimestamp"][:10]
    cluster.wait_for(lambda: len([line for line in lines if "still waiting" in line]) >= 2)
    again = next(line for line in lines if "still waiting" in line)
    assert isinstance(again, StillWaiting)
    assert f"still waiting, for 0 minutes (since {began} " in again
    assert "UTC): Unschedulable: 0/1 nodes are available: 1 Insufficient nvidia.com/gpu" in again
    assert again.endswith("It is given up after 120 minutes")
    cluster.node.gpus = 8
    thread.join()


def test_who_adopts_a_waiting_job_tells_since_when_it_waits(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "REMIND_SECONDS", 0.5)
    cluster.node.gpus = 0
    backend_with(tmp_path).submit(spec())
    [job] = cluster.jobs()
    two_hours_ago = (datetime.now(UTC) - timedelta(hours=2)).strftime("%Y-%m-%dT%H:%M:%SZ")
    job["metadata"]["creationTimestamp"] = two_hours_ago
    cluster.do(lambda: cluster.store.update("jobs", job))
    thread, lines, _ = follow_beside(backend_with(tmp_path), spec())
    told(cluster, lines, "still waiting, for 120 minutes")
    cluster.node.gpus = 8
    thread.join()


def test_the_time_that_a_job_had_waited_before_it_was_adopted_counts(
    cluster: Cluster, tmp_path: Path
) -> None:
    cluster.node.gpus = 0
    backend_with(tmp_path).submit(spec())
    [job] = cluster.jobs()
    two_hours_ago = (datetime.now(UTC) - timedelta(hours=2)).strftime("%Y-%m-%dT%H:%M:%SZ")
    job["metadata"]["creationTimestamp"] = two_hours_ago
    cluster.do(lambda: cluster.store.update("jobs", job))
    end, _ = follow(backend_with(tmp_path, pending_timeout_seconds=3600), spec())
    assert "no pod had started after 3600 seconds (Unschedulable: " in end.reason
    assert end.reason.endswith("; given up")


def test_a_cluster_without_gpus_runs_what_wants_none(
    backend: KubernetesBackend, cluster: Cluster
) -> None:
    cluster.node.gpus = 0
    del cluster.node.labels["gpu.nvidia.com/class"]
    asked = load_parameters(
        Parameters, {"run_name": "run", "trainer_gpu": "none", "trainer_cores": 1, "trainer_ram": 1}
    )
    resources = step_spec(asked.model_dump(), "finetune", {}).resources
    end, _ = follow(backend, dataclasses.replace(spec(), resources=resources, region=""))
    assert end.outcome["status"] == "done"


def test_no_node_of_that_class(backend: KubernetesBackend, cluster: Cluster) -> None:
    cluster.node.labels["gpu.nvidia.com/class"] = "H100"
    words = "didn't match Pod's node affinity/selector"
    mend = lambda: cluster.node.labels.update({"gpu.nvidia.com/class": "A40"})  # noqa: E731
    mended_then_done(backend, cluster, words, mend)


def test_no_such_image(backend: KubernetesBackend, cluster: Cluster) -> None:
    cluster.node.missing_images.add("finetune-steps:0.2.0")
    words = 'ImagePullBackOff: Back-off pulling image "finetune-steps:0.2.0"'
    mended_then_done(backend, cluster, words, cluster.node.missing_images.clear)


def test_a_volume_that_can_not_be_mounted(backend: KubernetesBackend, cluster: Cluster) -> None:
    cluster.node.mount_failure = "MountVolume.SetUp failed for volume"
    words = "FailedMount: MountVolume.SetUp failed for volume"
    mended_then_done(backend, cluster, words, lambda: setattr(cluster.node, "mount_failure", ""))


def test_no_such_claim(backend: KubernetesBackend, cluster: Cluster) -> None:
    claim = cluster.do(lambda: cluster.store.get("persistentvolumeclaims", "default", CLAIM))
    cluster.do(lambda: cluster.store.remove("persistentvolumeclaims", claim))
    words = f'Unschedulable: persistentvolumeclaim "{CLAIM}" not found'
    mend = lambda: cluster.create("persistentvolumeclaims", {"metadata": {"name": CLAIM}})  # noqa: E731
    mended_then_done(backend, cluster, words, mend)


def test_a_quota_that_is_used_up(backend: KubernetesBackend, cluster: Cluster) -> None:
    cluster.rules.refuses_pods = "exceeded quota: gpus"
    thread, lines, ends = follow_beside(backend, spec())
    told(cluster, lines, "FailedCreate: Error creating: pods")
    assert not ends
    cluster.rules.refuses_pods = ""
    thread.join()
    assert ends[0].outcome["status"] == "done"


def test_a_job_that_its_queue_holds_back(cluster: Cluster, tmp_path: Path) -> None:
    backend = backend_with(tmp_path, queue="gpus")
    mend = lambda: cluster.resume("run-finetune-01234567")  # noqa: E731
    mended_then_done(backend, cluster, "waiting: suspended: Job suspended", mend)


def test_who_waits_too_long_gives_up_if_asked_to(cluster: Cluster, tmp_path: Path) -> None:
    cluster.node.gpus = 0
    backend = backend_with(tmp_path, pending_timeout_seconds=1.0)
    end, _ = follow(backend, spec())
    assert (end.exit_code, end.outcome) == (1, None)
    assert "no pod had started after 1 seconds (Unschedulable: 0/1 nodes" in end.reason
    cluster.wait_for(lambda: not cluster.jobs())


def patches(cluster: Cluster) -> int:
    return [(r.verb, r.resource) for r in cluster.faults.seen].count(("patch", "jobs"))


@pytest.mark.parametrize("adopted", [False, True])
def test_a_step_that_was_evicted_is_not_given_up_while_it_waits_for_its_place(
    cluster: Cluster,
    volume: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    adopted: bool,
) -> None:
    passed: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + sum(passed))
    monkeypatch.setattr(watching, "time", clock)
    backend = backend_with(tmp_path, pending_timeout_seconds=1000)
    step = spec(until="go", attempt="flow-run-1")
    thread, lines, ends = follow_beside(backend, step)
    cluster.wait_for(lambda: starts(volume))
    pod = cluster.running_pod()
    cluster.wait_for(lambda: RAN_ANNOTATION in cluster.jobs()[0]["metadata"]["annotations"])
    cluster.node.gpus = 0
    cluster.do(lambda: cluster.kubelet.evict(pod))
    told(cluster, lines, "waiting: Unschedulable")
    threads = [thread]
    if adopted:  # by an orchestrator that did not see the first pod
        later = backend_with(tmp_path, pending_timeout_seconds=1000)
        thread, lines, _ = follow_beside(later, step, ends)
        threads.append(thread)
        told(cluster, lines, "waiting: Unschedulable")
    notes = patches(cluster)
    passed.append(2000)  # longer than the timeout: each says now that it is alive
    cluster.wait_for(lambda: patches(cluster) == notes + len(threads))
    (volume / "go").touch()
    cluster.node.gpus = 8
    for thread in threads:
        thread.join()
    assert [end.outcome["status"] for end in ends] == ["done"] * len(threads)


def test_a_node_that_does_not_answer_is_told(
    backend: KubernetesBackend, cluster: Cluster, volume: Path
) -> None:
    thread, lines, ends = follow_beside(backend, spec(until="go"))
    cluster.wait_for(lambda: starts(volume))
    pod = copy.deepcopy(cluster.running_pod())
    ready = next(c for c in pod["status"]["conditions"] if c["type"] == "Ready")
    ready["status"] = "False"  # by the controller that looks after nodes
    cluster.do(lambda: cluster.store.update("pods", pod))
    told(cluster, lines, "waiting: node node-1 does not answer; another pod takes the place of")
    ready["status"] = "True"
    cluster.do(lambda: cluster.store.update("pods", pod))
    told(cluster, lines, "running")
    (volume / "go").touch()
    thread.join()
    assert ends[0].outcome["status"] == "done"


def test_a_refused_request_is_not_tried_again(
    backend: KubernetesBackend, cluster: Cluster, volume: Path
) -> None:
    end, _ = follow(backend, spec(exit_codes=[78]))
    assert (end.exit_code, end.outcome["status"]) == (78, "refused")
    assert starts(volume) == 1


def test_out_of_memory_names_the_limit(cluster: Cluster, volume: Path, tmp_path: Path) -> None:
    backend = backend_with(tmp_path, backoff_limit=0)
    thread, _, ends = follow_beside(backend, spec(until="never"))
    cluster.wait_for(lambda: starts(volume))
    pod = cluster.running_pod()
    cluster.do(lambda: cluster.kubelet.kill_for_memory(pod))
    thread.join()
    assert ends[0].exit_code == 137
    assert ends[0].reason == "out of memory: killed at its limit of 32Gi (raise trainer_ram)"


def test_a_deadline_is_told(cluster: Cluster, volume: Path, tmp_path: Path) -> None:
    backend = backend_with(tmp_path, deadline_seconds=1)
    end, _ = follow(backend, spec(until="never"))
    assert end.exit_code != 0
    assert end.reason == "it took longer than its deadline of 1 seconds"


def test_a_job_deleted_by_somebody_ends_the_wait_as_interrupted(
    backend: KubernetesBackend, cluster: Cluster, volume: Path, tmp_path: Path
) -> None:
    thread, _, ends = follow_beside(backend, spec(until="never"))
    cluster.wait_for(lambda: starts(volume))
    backend_with(tmp_path).kill(spec(until="never"))
    thread.join()
    assert (ends[0].exit_code, ends[0].reason) == (
        143,
        "stopped: Job run-finetune-01234567 was deleted",
    )


def refused_and_gone(cluster: Cluster, volume: Path, started: datetime) -> None:
    """The step says no and leaves that on the volume; its node goes with its pod."""
    cluster.wait_for(lambda: cluster.jobs()[0]["status"].get("conditions"))
    for pod in cluster.pods():
        cluster.do(lambda pod=pod: cluster.store.remove("pods", pod))
    outcome = {"step": "finetune", "status": "refused", "message": "learn_rate is negative."}
    path = volume / "run/outcomes/finetune.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({**outcome, "started": started.isoformat()}))


@pytest.mark.parametrize(("hours", "code"), [(0, 78), (-1, 1)], ids=["its own", "an older one"])
def test_a_failure_whose_pod_is_gone_is_explained_by_what_it_left_on_the_volume(
    backend: KubernetesBackend, cluster: Cluster, volume: Path, hours: int, code: int
) -> None:
    step = spec(exit_codes=[78], leaves_nothing=True)
    backend.submit(step)
    refused_and_gone(cluster, volume, datetime.now(UTC) + timedelta(hours=hours))
    end = backend.wait(step, lambda line: None)
    assert end.exit_code == code
    assert (end.outcome or {}).get("message") == (None if hours else "learn_rate is negative.")


@pytest.mark.parametrize("limit", [0, 2])
def test_a_crash_is_tried_as_often_as_allowed(
    cluster: Cluster, volume: Path, tmp_path: Path, limit: int
) -> None:
    end, _ = follow(backend_with(tmp_path, backoff_limit=limit), spec(exit_codes=[3]))
    assert (end.exit_code, starts(volume)) == (3, limit + 1)
    assert "exit code 3" in end.reason
