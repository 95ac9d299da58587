"""A step's lines come once each, whatever happens to streams, pods and followers."""

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.kubernetes_backend.interruptible import Outlet, run
from infra.kubernetes_backend.jobs import KubernetesBackend
from infra.kubernetes_backend.pod_logs import (
    LONGEST_LINE_BYTES,
    SECOND,
    SECONDS_KEPT,
    Position,
    _hand_over,
    _lines,
)
from tests.kubernetes.conftest import backend_with, follow, spec, starts
from tests.kubernetes_double.cluster import Cluster
from tests.kubernetes_double.faults import Request


def ticks(lines: list[str], start: int = 1) -> list[str]:
    return [line for line in lines if line.endswith(f"of start {start}") and "tick" in line]


def printed(lines: list[str]) -> list[str]:
    """The step's own lines, without those that tell of an ended pod."""
    return [line for line in lines if not line.startswith("job ")]


def expected_ticks(number: int, start: int = 1) -> list[str]:
    return [f"tick {i} of start {start}" for i in range(number)]


def test_lines_come_once_through_streams_that_are_cut_in_the_middle_of_a_line(
    backend: KubernetesBackend, cluster: Cluster, volume: Path
) -> None:
    cluster.faults.log_cuts = [777, 3001, 5003, 9001]
    step = spec(lines=[f"line {i} of a log that is cut" for i in range(300)])
    end, lines = follow(backend, step)
    assert lines[:-1] == step.config["lines"]
    assert end.outcome["status"] == "done"
    assert not cluster.faults.log_cuts


def test_lines_come_once_while_streams_are_cut_and_the_step_goes_on_printing(
    backend: KubernetesBackend, cluster: Cluster, volume: Path
) -> None:
    lines: list[str] = []

    def take(line: str) -> None:
        lines.append(line)
        if len(lines) in (50, 150, 400, 401, 700):
            cluster.do(cluster.faults.cut_streams)
        if len(lines) == 1000:
            (volume / "go").touch()

    step = spec(until="go", tick=0.001)
    backend.submit(step)
    backend.wait(step, take)
    assert len(lines) > 1000
    assert ticks(lines) == expected_ticks(len(lines) - 1)


def test_who_is_interrupted_and_waits_again_gets_each_line_once(
    backend: KubernetesBackend, cluster: Cluster, volume: Path
) -> None:
    step = spec(until="go", lines=[f"line {i}" for i in range(300)])
    backend.submit(step)
    uid = cluster.running_pod()["metadata"]["uid"]
    log = cluster.folder / "pods" / uid / "log"
    cluster.wait_for(lambda: b"line 299" in log.read_bytes())  # so that they come at one go
    lines: list[str] = []

    def interrupted(line: str) -> None:
        if len(lines) == 70:
            raise KeyboardInterrupt
        lines.append(line)

    with pytest.raises(KeyboardInterrupt):
        backend.wait(step, interrupted)
    (volume / "go").touch()
    backend.wait(step, lines.append)
    assert lines == [*step.config["lines"], "last line of start 1"]


def test_lines_of_every_pod_of_the_job_come(cluster: Cluster, volume: Path, tmp_path: Path) -> None:
    backend = backend_with(tmp_path, backoff_limit=2)
    end, lines = follow(backend, spec(lines=["begins"], exit_codes=[1, 1, 0]))
    assert printed(lines) == [x for n in (1, 2, 3) for x in ("begins", f"last line of start {n}")]
    assert (end.exit_code, end.outcome["status"]) == (0, "done")


def test_an_evicted_pod_is_replaced_without_counting_as_a_failure(
    cluster: Cluster, volume: Path, tmp_path: Path
) -> None:
    backend = backend_with(tmp_path, backoff_limit=0)
    step = spec(until="go", lines=["begins"])
    backend.submit(step)
    lines: list[str] = []

    def take(line: str) -> None:
        lines.append(line)
        if line == "begins" and starts(volume) < 3:
            pod = cluster.running_pod()
            cluster.do(lambda: cluster.kubelet.evict(pod))
        elif line == "begins":
            (volume / "go").touch()

    end = backend.wait(step, take)
    assert printed(lines) == [x for n in (1, 2, 3) for x in ("begins", f"last line of start {n}")]
    assert (end.exit_code, end.outcome["result"]["starts"]) == (0, 3)


def test_who_adopts_a_job_gets_its_newest_lines_and_then_all(
    backend: KubernetesBackend, cluster: Cluster, volume: Path, tmp_path: Path
) -> None:
    step = spec(until="go", lines=[f"line {i}" for i in range(100)])
    backend.submit(step)
    uid = cluster.running_pod()["metadata"]["uid"]
    log = cluster.folder / "pods" / uid / "log"
    cluster.wait_for(lambda: b"line 99" in log.read_bytes())
    other = backend_with(tmp_path)
    other.submit(step)
    (volume / "go").touch()
    lines: list[str] = []
    other.wait(step, lines.append)
    assert lines[-1] == "last line of start 1"
    assert lines[:-1] == step.config["lines"][-len(lines) + 1 :]
    assert 19 <= len(lines) <= 21


def test_who_adopted_a_job_gets_every_line_of_the_pods_that_came_after(
    backend: KubernetesBackend, cluster: Cluster, volume: Path, tmp_path: Path
) -> None:
    step = spec(until="go", lines=[f"line {i}" for i in range(100)])
    backend.submit(step)
    first = cluster.running_pod()
    cluster.wait_for(lambda: starts(volume))
    other = backend_with(tmp_path)
    other.submit(step)
    lines: list[str] = []
    evicted: list[bool] = []

    def unprinted(request: Request) -> bool:
        """The next pod's log is asked for, and not all is there yet."""
        logs = [log.read_bytes() for log in (cluster.folder / "pods").glob("*/log")]
        whole = sum(b"line 99" in log for log in logs)
        return request.resource == "pods/log" and bool(evicted) and whole < 2

    def take(line: str) -> None:
        lines.append(line)
        if not evicted:
            evicted.append(True)
            cluster.faults.held = unprinted
            cluster.do(lambda: cluster.kubelet.evict(first))
        if line == "line 99" and starts(volume) == 2:
            (volume / "go").touch()

    other.wait(step, take)
    begin = lines.index("last line of start 1")
    assert printed(lines[begin + 1 :]) == [*step.config["lines"], "last line of start 2"]


def test_the_same_flow_run_gets_what_was_printed_while_it_was_away(
    backend: KubernetesBackend, cluster: Cluster, volume: Path, tmp_path: Path
) -> None:
    step = spec(until="go", attempt="flow-run-1", lines=[f"line {i}" for i in range(100)])
    backend.submit(step)
    cluster.running_pod()
    other = backend_with(tmp_path)
    other.submit(step)
    (volume / "go").touch()
    lines: list[str] = []
    other.wait(step, lines.append)
    assert lines == [*step.config["lines"], "last line of start 1"]


def test_without_permission_to_read_logs_the_end_is_still_told(
    backend: KubernetesBackend, cluster: Cluster
) -> None:
    cluster.faults.allowed = lambda request: request.resource != "pods/log"
    end, lines = follow(backend, spec())
    assert end.outcome["status"] == "done"
    assert len(lines) == 1 and 'cannot get resource "pods/log"' in lines[0]


def test_a_line_that_never_ends_is_cut(backend: KubernetesBackend, cluster: Cluster) -> None:
    _, lines = follow(backend, spec(long_line=5_000_000))
    assert lines[1:] == ["after", "last line of start 1"]
    assert LONGEST_LINE_BYTES - 100 < len(lines[0]) < LONGEST_LINE_BYTES


# --- the rule itself, with time stamps as bad as they come -------------------------------

gaps = st.lists(st.integers(-900, 700_000_000), min_size=1, max_size=60)  # nanoseconds


def stamped(gaps_in_nanoseconds: list[int]) -> list[bytes]:
    """A log whose stamps grow, now and then falling back by less than a microsecond."""
    now, lines = 1_763_000_000 * 10**9, []
    for number, gap in enumerate(gaps_in_nanoseconds):
        now += gap
        seconds, rest = divmod(now, 10**9)
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
        lines.append(f"{stamp}.{rest:09d}Z line {number}\n".encode())
    return lines


async def pieces_of(data: bytes) -> AsyncIterator[bytes]:
    for begin in range(0, len(data), 37):
        yield data[begin : begin + 37]


@settings(max_examples=150, deadline=None)
@given(gaps, st.lists(st.integers(0, 60), max_size=5))
def test_any_cut_at_any_place_repeats_and_loses_nothing(
    between: list[int], cuts: list[int]
) -> None:
    log = stamped(between)
    position = Position()
    got: list[str] = []

    async def read(outlet: Outlet) -> None:
        for end in [*sorted(cuts), len(log)]:
            since, _ = position.query()
            # What a kubelet sends: the lines not older than that second, in the log's order.
            sent = [x for x in log[:end] if since is None or x[:SECOND].decode() >= since[:SECOND]]
            repeated = position.repeated
            async for lines in _lines(pieces_of(b"".join(sent))):
                repeated = await _hand_over(lines, repeated, position, outlet)

    run(read, got.append)
    assert got == [f"line {i}" for i in range(len(log))]
    assert len(position.counts) <= SECONDS_KEPT
