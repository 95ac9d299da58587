"""What recordings of a real cluster mean, in words."""

import json
from pathlib import Path
from typing import Any

import pytest

from infra.kubernetes_backend import diagnosis

RECORDINGS = Path(__file__).parent / "recordings"
Object = dict[str, Any]


def moments(name: str) -> list[tuple[Object, list[Object], list[Object]]]:
    """Job, pods and events after each change of the recording."""
    job: Object = {}
    pods: dict[str, Object] = {}
    events: dict[str, Object] = {}
    seen = []
    for line in (RECORDINGS / f"{name}.jsonl").read_text().splitlines():
        change = json.loads(line)
        obj, uid = change["object"], change["object"]["metadata"]["uid"]
        if obj["kind"] == "Job":
            job = obj
        else:
            kept = pods if obj["kind"] == "Pod" else events
            kept[uid] = obj
            if change["type"] == "DELETED":
                del kept[uid]
        seen.append((job, list(pods.values()), list(events.values())))
    return seen


@pytest.mark.parametrize("name", ["ok", "evicted", "ranks"])
def test_a_good_job_ends_with_complete_and_not_before(name: str) -> None:
    complete = [diagnosis.is_complete(job) for job, _, _ in moments(name)]
    assert complete == sorted(complete) and complete[-1]
    first = complete.index(True)
    before = moments(name)[first - 1][0]["status"]
    assert before["conditions"][0]["type"] == "SuccessCriteriaMet"
    assert not any(diagnosis.is_failed(job) for job, _, _ in moments(name))


@pytest.mark.parametrize(
    ("name", "words", "code"),
    [
        ("fails", "exit code 7 (the last of 2 tries)", 7),
        ("fatal42", "exit code 42", 42),
        ("oom", "out of memory: killed at its limit of 30Mi (raise trainer_ram)", 137),
        ("deadline", "it took longer than its deadline of 5 seconds", 1),
    ],
)
def test_a_failed_job_is_told_by_its_cause(name: str, words: str, code: int) -> None:
    job, pods, _ = moments(name)[-1]
    assert diagnosis.is_failed(job)
    assert diagnosis.why_failed(job, pods) == words
    assert diagnosis.exit_code_of(pods) == code


def test_an_evicted_pod_is_told() -> None:
    told = {
        diagnosis.why_ended(pod)
        for _, pods, _ in moments("evicted")
        for pod in pods
        if diagnosis.has_ended(pod)
    }
    assert told == {"disrupted (EvictionByEvictionAPI): Eviction API: evicting", ""}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("unschedulable", "Unschedulable: 0/1 nodes are available: 1 Insufficient nvidia.com/gpu."),
        ("noimage", 'ErrImageNeverPull: Container image "docker.io/local/none:1" is not present'),
    ],
)
def test_a_pod_that_waits_is_told_with_the_clusters_words(name: str, words: str) -> None:
    assert diagnosis.why_waiting(*moments(name)[-1]).startswith(words)


def test_a_node_of_two_that_was_tried_twice_is_not_both() -> None:
    job, pods, _ = next(moment for moment in moments("ranks") if both_run(moment[1]))
    assert diagnosis.have_all_run(job, pods)
    first = next(pod for pod in pods if diagnosis.index_of(pod) == "0")
    assert not diagnosis.have_all_run(job, [first, first])


def both_run(pods: list[Object]) -> bool:
    return [diagnosis.is_running(pod) for pod in pods] == [True, True]


@pytest.mark.parametrize("name", ["ok", "fails", "evicted", "ranks", "deadline", "cancelled"])
def test_nothing_is_said_to_wait_that_only_takes_its_time(name: str) -> None:
    unfinished = [moment for moment in moments(name) if not diagnosis.is_failed(moment[0])]
    assert {diagnosis.why_waiting(*moment) for moment in unfinished} == {""}
