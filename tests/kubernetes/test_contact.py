"""Contact with the cluster is lost; what can't get better is said at once."""

import asyncio
import dataclasses
import gc
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession

from infra.backend import ContactError, PlaceError
from infra.kubernetes_backend.connection import Connection
from infra.kubernetes_backend.jobs import KubernetesBackend
from tests.kubernetes.conftest import LOOK_SECONDS, backend_with, follow, spec, starts
from tests.kubernetes_double.cluster import Cluster
from tests.kubernetes_double.faults import Request
from trainer.contract.cluster_settings import ClusterSettings


@pytest.mark.parametrize(
    ("verb", "code"),
    [("get", 429), ("list", 500), ("create", 503), ("delete", 504), ("patch", 502), ("get", 520)],
)
def test_a_passing_error_of_any_request_is_not_noticed(
    backend: KubernetesBackend, cluster: Cluster, volume: Path, verb: str, code: int
) -> None:
    cluster.faults.refuse(code, "Passing", verb=verb, times=2)
    step = spec(until="go")
    backend.submit(step)
    backend.submit(step)  # adopts, which is what patches
    (volume / "go").touch()
    assert backend.wait(step, lambda line: None).outcome["status"] == "done"
    backend.cancel(step)
    assert (starts(volume), cluster.jobs()) == (1, [])


def test_a_cluster_that_stays_away_is_given_up_and_the_step_left_alone(
    cluster: Cluster, volume: Path, tmp_path: Path
) -> None:
    backend = KubernetesBackend(
        ClusterSettings(), look_seconds=LOOK_SECONDS, patience_seconds=1.0, volumes=tmp_path
    )
    step = spec(until="go")
    backend.submit(step)
    cluster.running_pod()
    cluster.faults.down = True
    with pytest.raises(ContactError, match=r"did not answer for 1 seconds.*continues without us"):
        backend.wait(step, lambda line: None)
    cluster.faults.down = False
    assert [pod["status"]["phase"] for pod in cluster.pods()] == ["Running"]


@pytest.mark.parametrize("minutes", [15, 21])
def test_a_cluster_may_be_away_for_a_quarter_of_an_hour(cluster: Cluster, minutes: int) -> None:
    now, said = 0.0, []

    async def pause(seconds: float) -> None:
        nonlocal now
        now += seconds
        cluster.faults.down = now < minutes * 60

    async def ask() -> list[Any]:
        async with Connection(tell=said.append, clock=lambda: now, pause=pause) as connection:
            return await connection.list_jobs("")

    cluster.faults.down = True
    if minutes == 15:
        assert asyncio.run(ask()) == []
        assert len(said) == 2 and said[1] == "the cluster answers again"
    else:
        with pytest.raises(ContactError, match="did not answer for 1200 seconds"):
            asyncio.run(ask())
        assert len(said) == 1
    assert said[0].startswith("the cluster does not answer (") and said[0].endswith("trying on")


def test_a_request_that_takes_long_and_fails_once_is_not_told(cluster: Cluster) -> None:
    now, said = 0.0, []

    def take_long(asked: Request, number: int) -> None:
        nonlocal now
        now += 20.0

    async def ask() -> list[Any]:
        async with Connection(tell=said.append, clock=lambda: now) as connection:
            return await connection.list_jobs("")

    cluster.faults.before_request = take_long
    cluster.faults.refuse(503, "Passing")
    assert asyncio.run(ask()) == []
    assert (len(cluster.faults.seen), said) == (2, [])


def test_credentials_that_were_never_good_are_refused_at_once(
    backend: KubernetesBackend, cluster: Cluster
) -> None:
    cluster.write_kubeconfig("no-such-token")
    with pytest.raises(PlaceError, match=r"does not accept your credentials.*Log in again"):
        backend.submit(spec())
    assert len(cluster.faults.seen) == 1


def test_credentials_that_are_renewed_again_and_again_leave_nothing_behind(
    cluster: Cluster,
) -> None:
    def open_sessions() -> int:
        found = [made for made in gc.get_objects() if isinstance(made, ClientSession)]
        return sum(not session.closed for session in found)

    async def ask_with_ever_new_ones() -> None:
        async with Connection() as connection:
            await connection.list_jobs("")
            one = open_sessions()  # and those of the cluster
            for number in range(6):
                cluster.faults.tokens = {f"token-{number}"}
                cluster.write_kubeconfig(f"token-{number}")
                await connection.list_jobs("")
            assert open_sessions() <= one + 1  # the one before may still read a log

    asyncio.run(ask_with_ever_new_ones())


@pytest.mark.parametrize(
    ("verb", "resource"), [("get", "jobs"), ("list", "jobs"), ("create", "jobs"), ("list", "pods")]
)
def test_a_missing_permission_is_named_at_once(
    backend: KubernetesBackend, cluster: Cluster, verb: str, resource: str
) -> None:
    cluster.faults.allowed = lambda request: (request.verb, request.resource) != (verb, resource)
    with pytest.raises(PlaceError, match=rf"may not {verb} {resource}.*in namespace 'default'"):
        follow(backend, spec())


def test_a_namespace_that_is_not_there_is_named_at_once(cluster: Cluster, tmp_path: Path) -> None:
    with pytest.raises(PlaceError, match=r"namespace 'elsewhere'.*is not there"):
        backend_with(tmp_path, namespace="elsewhere").submit(spec())


def test_a_run_may_be_named_like_what_is_missing(
    backend: KubernetesBackend, cluster: Cluster
) -> None:
    step = dataclasses.replace(spec(), run_name="namespaces")
    assert backend.submit(step) == "Job namespaces-finetune-01234567"


@pytest.mark.parametrize("resource", ["jobs", "pods"])
def test_what_a_proxy_does_not_find_is_not_gone(
    backend: KubernetesBackend, cluster: Cluster, volume: Path, resource: str
) -> None:
    step = spec(until="go")
    backend.submit(step)
    cluster.running_pod()
    cluster.faults.refuse(404, "", "404 page not found", resource=resource, times=2)
    (volume / "go").touch()
    assert backend.wait(step, lambda line: None).outcome["status"] == "done"


def test_a_wrong_field_is_named_at_once(cluster: Cluster, tmp_path: Path) -> None:
    wrong = backend_with(tmp_path, queue="q" * 64)
    with pytest.raises(PlaceError, match=r"metadata.labels\[kueue.x-k8s.io/queue-name\]"):
        wrong.submit(spec())


def test_an_unknown_field_is_named_at_once(cluster: Cluster, tmp_path: Path) -> None:
    wrong = backend_with(tmp_path, tolerations=[{"key": "gpu", "nosuchfield": "x"}])
    with pytest.raises(PlaceError, match=r'unknown field "spec.*tolerations\[0\].nosuchfield"'):
        wrong.submit(spec())


def test_without_a_cluster_it_says_where_it_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "no-such-file"))
    with pytest.raises(PlaceError, match=r"no cluster to talk to.*KUBECONFIG"):
        backend_with(tmp_path).submit(spec())
