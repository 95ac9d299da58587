"""Whatever a server or a proxy answers is retried or becomes a sentence, never a traceback."""

import asyncio
import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from infra.backend import ContactError, PlaceError
from infra.kubernetes_backend import diagnosis
from infra.kubernetes_backend.answers import answer_of
from infra.kubernetes_backend.connection import Connection
from infra.kubernetes_backend.jobs import KubernetesBackend
from infra.kubernetes_backend.refusals import RefusedError, in_words, refusal_of
from tasks.following import follow_step
from tests.kubernetes.conftest import backend_with, follow, spec, starts
from tests.kubernetes.test_double_and_recordings import RECORDINGS, recorded
from tests.kubernetes_double.cluster import Cluster
from trainer.contract.outcome import Outcome

ANSWERS = json.loads((RECORDINGS / "responses-2.json").read_text())
REFUSALS = {n: a for n, a in ANSWERS.items() if a.get("code", 0) > 401 or "body" in a}


@pytest.mark.parametrize("name", REFUSALS)
def test_each_recorded_refusal_is_told_in_the_servers_own_words(name: str) -> None:
    answer = REFUSALS[name]
    body = answer["body"] if "body" in answer else json.dumps(answer)
    error = refusal_of(answer["code"], body.encode())
    words = str(in_words(error, "create jobs.batch", "default"))
    assert (answer["body"].strip() if "body" in answer else answer["message"]) in words
    assert ("your account may not" in words) is ("forbidden_while" in name)


# --- any body ---------------------------------------------------------------------------

PAGE = b"<html><head><title>502</title></head><body><h1>Bad Gateway</h1>nginx</body></html>"
STATUS = {"kind": "Status", "message": "no", "reason": "Forbidden", "details": {"causes": []}}
BODIES = [
    b"",
    PAGE,
    b"\xff\xfe\x00",
    b"null",
    b"[]",
    b"3",
    b'"text"',
    b"{}",
    b"[" * 100_000,
    b'{"kind": "Pod"}',
    b'{"kind": null, "items": 3}',
    b'{"kind": "PodList", "items": [null, 3, {}]}',
    b'{"kind": "PodList", "items": {}}',
    b'{"kind": "Job", "metadata": null, "spec": [], "status": 3}',
    *(json.dumps({**STATUS, name: value}).encode() for name in STATUS for value in (None, 3, [])),
    *(
        json.dumps({**STATUS, "details": {"causes": causes}}).encode()
        for causes in (None, 3, {}, [None], [{}], [{"message": "m"}], [{"field": "f"}])
    ),
]
CODES = (200, 201, 302, 400, 403, 404, 409, 410, 422, 500, 599)


@pytest.fixture
def anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What the server at the kubeconfig's address answers to every request: code and body."""
    now: dict[str, Any] = {"code": 200, "body": b""}
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    now["kubeconfig"] = tmp_path / "kubeconfig"
    yield now


def ask_everything(now: dict[str, Any]) -> list[str]:
    """What each request of a connection came to, for every code and body."""

    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=now["code"], body=now["body"])

    async def work() -> list[str]:
        app = web.Application()
        app.router.add_route("*", "/{any:.*}", answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        server = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}
        context = {"name": "c", "context": {"cluster": "c", "user": "u", "namespace": "default"}}
        users = [{"name": "u", "user": {"token": "t"}}]
        config = {"clusters": [server], "contexts": [context], "users": users}
        config |= {"apiVersion": "v1", "kind": "Config", "current-context": "c"}
        now["kubeconfig"].write_text(yaml.safe_dump(config))
        said = []
        async with Connection(patience_seconds=-1.0) as connection:
            for now["code"] in CODES:
                for now["body"] in BODIES:
                    said += [await outcome(request) for request in requests_of(connection)]
        await runner.cleanup()
        return said

    return asyncio.run(work())


JOB = {"metadata": {"name": "run", "uid": "u", "resourceVersion": "1"}}


def requests_of(connection: Connection) -> list[Any]:
    path = "/api/v1/namespaces/{namespace}/services"
    return [
        connection.create_job(JOB),
        connection.read_job("run"),
        connection.list_jobs(""),
        connection.annotate_job("run", {}),
        connection.delete_job(JOB),
        connection.create_service(JOB),
        connection.list_pods(JOB),
        connection.list_events("u"),
        connection.apply("services", path, JOB, "m"),
        connection.select("services", path, ""),
        connection.delete("services", path),
    ]


async def outcome(request: Any) -> str:
    """Nothing else may be raised: callers expect a 404 or 409, people a sentence."""
    try:
        await request
    except RefusedError as error:
        assert error.code in (404, 409)
    except (PlaceError, ContactError) as error:
        assert " " in str(error) and "<" not in str(error)
        return str(error)
    return ""


def test_any_body_with_any_code_becomes_a_sentence(anything: dict[str, Any]) -> None:
    said = ask_everything(anything)
    assert sum(map(bool, said)) > len(said) / 2
    assert any("Bad Gateway nginx" in words for words in said)


# --- any field missing ------------------------------------------------------------------

NAMES = ("ok", "fails", "oom", "evicted", "noimage", "unschedulable", "ranks", "quota", "apioutage")


def damaged(value: Any) -> Iterator[Any]:
    """The value with one thing in it left out, null, or of another type, for each thing."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        without = copy.copy(value)
        del without[key]
        yield without
        for other in (None, 3, "text", [], {}):
            changed = copy.copy(value)
            changed[key] = other
            yield changed
        if isinstance(value[key], dict | list):
            for inner in damaged(value[key]):
                changed = copy.copy(value)
                changed[key] = inner
                yield changed


def newest(name: str, kind: str) -> dict[str, Any] | None:
    found = [obj for _, obj in recorded(name) if obj["kind"] == kind]
    return next((obj for obj in reversed(found) if obj.get("status", found)), None)


def lists(action: str, obj: dict[str, Any] | None) -> Iterator[list[dict[str, Any]]]:
    """Lists that hold the object, damaged: as a connection hands them on."""
    for items in damaged([obj]) if obj else ():
        body = json.dumps({"kind": "List", "items": items}).encode()
        try:
            yield answer_of(action, 200, body)["items"]
        except RefusedError:
            continue


def explain(job: dict[str, Any], pods: list[Any], events: list[Any]) -> None:
    """Everything that is said of a Job."""
    diagnosis.why_waiting(job, pods, events)
    diagnosis.why_failed(job, pods)
    diagnosis.exit_code_of(pods)
    diagnosis.have_all_run(job, pods)
    for pod in pods:
        diagnosis.last_seen(pod)
        diagnosis.is_running(pod)
    for done in (True, False):
        if found := diagnosis.outcome_of(pods, done=done):
            Outcome.from_values(found)


@pytest.mark.parametrize("name", NAMES)
def test_an_object_without_one_of_its_fields_is_explained_all_the_same(name: str) -> None:
    job, pod, event = (newest(name, kind) for kind in ("Job", "Pod", "Event"))
    assert job and event
    pods, num_explained = [pod] if pod else [], 0
    for damaged_pods in lists("list pods", pod):
        explain(job, damaged_pods, [event])
        num_explained += 1
    for damaged_events in lists("list events", event):
        explain(job, pods, damaged_events)
        num_explained += 1
    for damaged_jobs in lists("list jobs.batch", job):
        for one in damaged_jobs:
            explain(one, pods, [event])
            num_explained += 1
    assert num_explained > 100


@pytest.mark.parametrize("left", ["{}", "[]", "null", "3", '{"status": 3}', '{"step": null}'])
def test_what_is_no_outcome_is_taken_for_none(left: str) -> None:
    values = json.loads(left)
    assert not isinstance(values, dict) or Outcome.from_values(values) is None


# --- while an API server starts ---------------------------------------------------------


@pytest.mark.parametrize("resource", ["jobs", "pods", "pods/log"])
def test_what_was_allowed_before_is_tried_again_while_caches_fill(
    backend: KubernetesBackend, cluster: Cluster, volume: Path, resource: str
) -> None:
    step = spec(until="go", tick=0.02)
    backend.submit(step)
    lines: list[str] = []

    def disturb(line: str) -> None:
        lines.append(line)
        if len(lines) == 5:
            cluster.faults.fill_caches(resource=resource, times=3)
            cluster.do(cluster.faults.cut_streams)
        if len(lines) == 20:
            (volume / "go").touch()

    assert backend.wait(step, disturb).outcome["status"] == "done"
    ticks = [line for line in lines if line.startswith("tick")]
    assert ticks == [f"tick {number} of start 1" for number in range(len(ticks))]
    assert lines[-1] == "last line of start 1"
    assert not any("can't be read" in line for line in lines)


def test_what_was_never_allowed_is_refused_at_once(
    backend: KubernetesBackend, cluster: Cluster
) -> None:
    cluster.faults.fill_caches(resource="jobs", verb="get")
    with pytest.raises(PlaceError, match=r"may not get jobs\.batch in namespace 'default'"):
        backend.submit(spec())


# --- admission looks before the name does -----------------------------------------------


@pytest.mark.parametrize("rule", ["quota", "policy 422", "policy 403"])
def test_a_job_whose_creation_was_not_heard_of_is_adopted_though_another_would_be_refused(
    backend: KubernetesBackend, cluster: Cluster, volume: Path, rule: str
) -> None:
    step = spec()

    def lose(request: Any, number: int) -> None:
        if (request.verb, request.resource) == ("create", "jobs") and not cluster.faults.down:
            cluster.rules.most = {"jobs": 1} if rule == "quota" else None
            cluster.rules.needs_owner = rule != "quota"
            cluster.rules.policy_reason = "Forbidden" if "403" in rule else "Invalid"
            cluster.faults.after_request = lambda *_: None
            raise ConnectionResetError  # it was made; nobody hears of it

    cluster.faults.after_request = lose
    assert follow_step(backend, step, []).status == "done"
    assert starts(volume) == 1


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"most": {"jobs": 0}}, "has no quota left for this.*count/jobs.batch=0"),
        ({"needs_owner": True}, "a Job needs the label owner"),
        ({"needs_owner": True, "policy_reason": "Forbidden"}, "a Job needs the label owner"),
    ],
)
def test_a_refused_job_is_refused_with_the_reason(
    backend: KubernetesBackend, cluster: Cluster, rule: dict[str, Any], words: str
) -> None:
    for name, value in rule.items():
        setattr(cluster.rules, name, value)
    with pytest.raises(PlaceError, match=words) as refused:
        backend.submit(spec())
    assert "your account may not" not in str(refused.value)


# --- pods that are refused, and pods that vanish ----------------------------------------


def test_a_reason_for_refusing_pods_is_told_once_whatever_the_pods_are_called(
    cluster: Cluster, tmp_path: Path
) -> None:
    backend = backend_with(tmp_path)
    quota = "exceeded quota: gpus, requested: requests.cpu=8, used: requests.cpu={}, limited: 9"
    cluster.rules.refuses_pods = quota.format(4)
    used = iter(range(5, 1000))

    def use_more(request: Any, number: int) -> None:
        if request.resource == "events" and number > 30:
            cluster.rules.refuses_pods = quota.format(next(used))
        if number > 60:
            cluster.rules.refuses_pods = ""

    cluster.faults.after_request = use_more
    end, lines = follow(backend, spec())
    assert end.outcome["status"] == "done"
    waiting = [line for line in lines if "waiting" in line]
    assert len(waiting) == 1, "\n".join(waiting)
    assert "exceeded quota: gpus" in waiting[0]


def test_of_a_pod_that_vanished_the_last_state_is_told(
    backend: KubernetesBackend, cluster: Cluster, volume: Path
) -> None:
    step = spec(until="go", tick=0.02)
    backend.submit(step)
    lines: list[str] = []

    def vanish(line: str) -> None:
        lines.append(line)
        if len(lines) == 5:
            pod = cluster.running_pod()
            cluster.do(lambda: cluster.kubelet.evict(pod))
        if line.endswith("of start 2"):
            (volume / "go").touch()

    assert backend.wait(step, vanish).outcome["status"] == "done"
    [ended] = [line for line in lines if " ended (" in line]
    assert "disrupted (EvictionByEvictionAPI)" in ended or "last seen running" in ended
