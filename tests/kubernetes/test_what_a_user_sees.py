"""What a person reads in the terminal when something on the cluster goes wrong."""

import io
import re
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.cli.terminal import PlainWatcher
from infra.kubernetes_backend.jobs import KubernetesBackend
from tasks.following import follow_step
from tests.kubernetes.conftest import backend_with, spec
from tests.kubernetes_double.cluster import Cluster
from tests.kubernetes_double.faults import Request
from trainer.contract.errors import RequestError, StepError

Act = Callable[[Cluster], None]
JOB = "run-finetune-01234567"


class Terminal(io.StringIO):
    """What was printed for a step, its own lines apart from what is said about it."""

    @property
    def said(self) -> list[str]:
        return [line for line in self._lines if "of start" not in line]

    def ticks(self, start: int) -> list[str]:
        return [x for x in self._lines if x.startswith("tick") and x.endswith(f"of start {start}")]

    @property
    def _lines(self) -> list[str]:
        return [x.removeprefix("finetune | ") for x in self.getvalue().splitlines()]


def evict(cluster: Cluster) -> None:
    pod = cluster.running_pod()
    cluster.do(lambda: cluster.kubelet.evict(pod))
    cluster.wait_for(lambda: cluster.running_pod()["metadata"]["uid"] != pod["metadata"]["uid"])


def run_out_of_memory(cluster: Cluster) -> None:
    pod = cluster.running_pod()
    cluster.do(lambda: cluster.kubelet.kill_for_memory(pod))


def leave(cluster: Cluster) -> None:
    cluster.faults.down = True
    cluster.do(cluster.faults.cut_streams)


def fail(cluster: Cluster) -> None:
    for code in (500, 502, 503, 504, 429):
        fail_once(cluster, code)


def fail_once(cluster: Cluster, code: int) -> None:
    """Refuse a request, and wait until the next of its kind was answered."""
    refusal = cluster.faults.refuse(code, "Passing", verb="get", resource="jobs")
    answered = []

    def note(asked: Request, _: int) -> None:
        if refusal.times == 0 and asked.resource == "jobs":
            answered.append(asked)

    cluster.faults.after_request = note
    cluster.wait_for(lambda: answered)


def cut(cluster: Cluster) -> None:
    cluster.do(cluster.faults.cut_streams)


AWAY = [r"the cluster does not answer \(", "the cluster answers again"]
# An evicted pod is deleted: a moment later it is gone.
EVICTED = (
    r"ended \((disrupted \(EvictionByEvictionAPI\): Eviction API: evicting|it is gone)[^)]*\); "
)
KILLED = re.escape("ended (out of memory: killed at its limit of 32Gi (raise trainer_ram)); ")
# What happens, how it is mended, what is said of it, and how often the step is started.
TROUBLES: dict[str, tuple[Act, Act | None, list[str], int]] = {
    "eviction": (evict, None, [EVICTED], 2),
    "out of memory": (run_out_of_memory, None, [KILLED], 2),
    "API away": (leave, lambda c: setattr(c.faults, "down", False), AWAY, 1),
    "token expired": (
        lambda c: setattr(c.faults, "tokens", {"second-token"}),
        lambda c: c.write_kubeconfig("second-token"),
        AWAY,
        1,
    ),
    "slow": (lambda c: setattr(c.faults, "slow_seconds", 0.3), None, [], 1),
    "passing errors": (fail, None, [], 1),
    "streams cut": (cut, cut, [], 1),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_trouble_in_mid_training_is_a_line_or_nothing(
    backend: KubernetesBackend, cluster: Cluster, volume: Path, trouble: str
) -> None:
    begin, mend, tells, times = TROUBLES[trouble]
    terminal = Terminal()

    def disturb() -> None:
        cluster.wait_for(lambda: len(terminal.ticks(1)) > 10)
        begin(cluster)
        if mend is not None:
            cluster.wait_for(lambda: len(terminal.said) > 1 or not tells)
            mend(cluster)
        printed = len(terminal.ticks(times))
        cluster.wait_for(lambda: len(terminal.ticks(times)) > printed + 10)
        (volume / "go").touch()

    thread = threading.Thread(target=disturb)
    thread.start()
    follow_step(backend, spec(until="go", tick=0.02), [PlainWatcher(terminal)])
    thread.join()

    head, *said, tail = terminal.said
    assert (head, tail) == (f"finetune: Job {JOB}", "finetune: done in 0 s: ended with 0")
    assert len(said) == len(tells), said
    assert all(re.search(words, line) for words, line in zip(tells, said, strict=True))
    # Not the step's own words, of which Prefect's log takes so many a minute.
    assert all(line.startswith("finetune: ") for line in said)
    for start in range(1, times + 1):
        printed = terminal.ticks(start)
        assert printed == [f"tick {i} of start {start}" for i in range(len(printed))]


def test_a_step_that_fails_says_what_which_why_where_and_what_to_do(
    cluster: Cluster, volume: Path, tmp_path: Path
) -> None:
    backend = backend_with(tmp_path, backoff_limit=0)

    def kill() -> None:
        uid = cluster.running_pod()["metadata"]["uid"]
        log = cluster.folder / "pods" / uid / "log"
        cluster.wait_for(lambda: b"loading weights" in log.read_bytes())
        run_out_of_memory(cluster)

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(StepError) as raised:
        follow_step(backend, spec(until="never", lines=["loading weights"]), [])
    thread.join()
    assert str(raised.value).splitlines() == [
        "the finetune step of 'run' failed: out of memory: killed at its limit of 32Gi "
        "(raise trainer_ram)",
        "Its last lines:",
        "    loading weights",
        f"The whole log: kubectl -n default logs --tail=-1 --prefix "
        f"-l batch.kubernetes.io/job-name={JOB}",
        "Correct the cause and run it again: it resumes from what is done.",
    ]


def test_what_a_step_refuses_is_told_with_where_it_was_found(
    backend: KubernetesBackend, cluster: Cluster
) -> None:
    terminal = Terminal()
    with pytest.raises(RequestError) as raised:
        follow_step(backend, spec(exit_codes=[78], lines=["reading"]), [PlainWatcher(terminal)])
    assert raised.value.problems == ("ended with 78",)
    assert str(raised.value).splitlines() == [
        "ended with 78",
        "The finetune step of 'run' found this.",
        "Its last lines:",
        "    reading",
        "    last line of start 1",
        f"The whole log: kubectl -n default logs --tail=-1 --prefix "
        f"-l batch.kubernetes.io/job-name={JOB}",
        "Mend it and run the same again.",
    ]


def test_a_step_that_crashes_again_and_again_and_is_stopped_is_told_of_its_crash(
    backend: KubernetesBackend, cluster: Cluster
) -> None:
    # The pod that would replace the second waits: long enough to be stopped meanwhile.
    cluster.controller._backoff_seconds = 60.0

    def looks() -> int:
        return sum(
            (asked.verb, asked.resource) == ("list", "pods") for asked in cluster.faults.seen
        )

    def stop() -> None:
        cluster.wait_for(lambda: cluster.jobs() and cluster.jobs()[0]["status"].get("failed", 0))
        before = looks()
        cluster.wait_for(lambda: looks() >= before + 2)  # the first may have come too early
        for pod in cluster.pods():
            assert pod["status"]["phase"] == "Failed"
        backend.stop("finetune-data", "run")

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(StepError) as raised:
        follow_step(backend, spec(exit_codes=[1], leaves_nothing=True), [])
    thread.join()
    head = str(raised.value).splitlines()[0]
    assert re.search(r"failed: .*pods? failed.*\(exit code 1\); stopped: Job .* was deleted", head)
    assert "Run it again to resume" not in str(raised.value)
