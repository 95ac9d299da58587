"""The double refuses, retries and restarts as a real Kubernetes 1.36 was recorded doing."""

import json
import re
from typing import Any

import pytest
import yaml

from tests.kubernetes.test_double_and_recordings import (
    RECORDINGS,
    SECOND_SET,
    ask,
    create,
    event_kinds,
    job_states,
    recorded,
)
from tests.kubernetes_double.cluster import NAMESPACE, Cluster
from tests.kubernetes_double.faults import TOO_MANY

RESPONSES = json.loads((RECORDINGS / "responses-2.json").read_text())
MANIFESTS = {
    manifest["metadata"]["name"]: manifest
    for manifest in yaml.safe_load_all((RECORDINGS / "manifests-2.yaml").read_text())
    if manifest["kind"] == "Job"
}
REFUSED = {
    "quota": "exceeded quota: cpu, requested: requests.cpu=1, used: requests.cpu=0, "
    "limited: requests.cpu=500m",
    "limitrange": "maximum memory usage per Container is 64Mi, but limit is 128Mi",
}


@pytest.fixture(autouse=True)
def images(cluster: Cluster) -> None:
    cluster.node.images = {"docker.io/local/bb:1": None}  # a shell: this machine's


def quick(recording: str, **more: Any) -> dict[str, Any]:
    """The recorded manifest with shorter sleeps, in the double's namespace."""
    text = re.sub(r"sleep \d+", "sleep 0.3", json.dumps(MANIFESTS[recording]))
    manifest = json.loads(text)
    manifest["metadata"] = {**manifest["metadata"], "namespace": NAMESPACE, **more}
    return manifest


def refusals(cluster: Cluster) -> list[str]:
    events = cluster.do(lambda: cluster.store.list("events"))
    return [e["message"] for e in events if e["reason"] == "FailedCreate" and e["count"] == 1]


def changes(cluster: Cluster) -> list[tuple[str, Any]]:
    return [(what, obj) for _, what, _, obj in cluster.history()]


def is_complete(cluster: Cluster) -> bool:
    return any("completionTime" in job["status"] for job in cluster.jobs())


@pytest.mark.parametrize("name", ["quota", "limitrange", "podsecurity"])
def test_pods_that_are_refused_and_let_in_later(cluster: Cluster, name: str) -> None:
    real = recorded(name)
    cluster.rules.refuses_pods = REFUSED.get(name, "")
    cluster.rules.restricted = name == "podsecurity"
    create(cluster, quick(name))
    cluster.wait_for(lambda: len(refusals(cluster)) > 2)
    assert len(set(refusals(cluster))) > 2  # each names another Pod
    assert cluster.pods() == [] and "active" not in cluster.jobs()[0]["status"]
    if name != "podsecurity":
        cluster.rules.refuses_pods = ""
        cluster.wait_for(lambda: is_complete(cluster))
    else:
        ask(cluster, "delete_namespaced_job", name=name, body={"propagationPolicy": "Background"})
    ours = changes(cluster)
    assert job_states(ours) == job_states(real)
    of_job = [kind for kind in event_kinds(real) if kind[0] == "Job"]
    assert [kind for kind in event_kinds(ours) if kind[0] == "Job"] == of_job
    words = [
        o["message"] for _, o in real if o["kind"] == "Event" and o["reason"] == "FailedCreate"
    ]
    assert len(set(words)) == len(words)
    if name != "podsecurity":  # whose words are longer
        assert shown(refusals(cluster)[0]) == shown(words[0])


def shown(message: str) -> str:
    """Without a Pod's random name."""
    return re.sub(r'-[a-z0-9]{5}"', '"', message)


@pytest.mark.parametrize("name", ["apirestart", "apioutage"])
def test_a_job_that_runs_on_while_the_api_server_is_away(cluster: Cluster, name: str) -> None:
    create(cluster, quick(name))
    cluster.running_pod()
    cluster.faults.down = True
    cluster.wait_for(lambda: is_complete(cluster))
    cluster.faults.down = False
    assert job_states(changes(cluster)) == job_states(recorded(name))


def test_a_job_whose_container_ends_at_once_again_and_again(cluster: Cluster) -> None:
    real = recorded("crashloop")
    create(cluster, quick("crashloop"))
    cluster.wait_for(lambda: cluster.jobs()[0]["status"].get("failed", 0) >= 3)
    failed = [pod for pod in cluster.pods() if pod["status"]["phase"] == "Failed"]
    assert len(failed) >= 3  # they stay
    of_real = [o for _, o in real if o["kind"] == "Pod" and o["status"]["phase"] == "Failed"]
    ended, recorded_end = (
        pods[-1]["status"]["containerStatuses"][0]["state"]["terminated"]
        for pods in (failed, of_real)
    )
    assert (ended["exitCode"], ended["reason"]) == (
        recorded_end["exitCode"],
        recorded_end["reason"],
    )


def as_default(response: Any) -> Any:
    return json.loads(json.dumps(response).replace("default:follower", "default:default"))


OWNER: dict[str, Any] = {"labels": {"owner": "me"}}


def test_a_policy_refuses_before_the_name_is_looked_at(cluster: Cluster) -> None:
    create(cluster, quick("quota", name="first", **OWNER))
    cluster.rules.needs_owner = True
    denied = create(cluster, quick("quota", name="unowned"))
    assert denied == RESPONSES["create_denied_by_policy"]
    existing = create(cluster, quick("quota", name="first"))
    assert existing == RESPONSES["create_existing_name_denied_by_policy"]
    cluster.rules.policy_reason = "Forbidden"
    forbidden = create(cluster, quick("quota", name="unowned"))
    assert forbidden == RESPONSES["create_denied_by_policy_reason_forbidden"]


def test_a_quota_refuses_before_the_name_is_looked_at(cluster: Cluster) -> None:
    cluster.rules.most = {"jobs": 1}
    create(cluster, quick("quota", name="first"))
    assert create(cluster, quick("quota", name="second")) == RESPONSES["create_over_quota"]
    existing = create(cluster, quick("quota", name="first"))
    assert existing == RESPONSES["create_existing_name_over_quota"]


def test_while_caches_fill_what_is_allowed_is_forbidden(cluster: Cluster) -> None:
    create(cluster, quick("apirestart"))
    cluster.faults.fill_caches(resource="jobs", times=3)
    told = create(cluster, quick("quota"))
    assert told == as_default(RESPONSES["create_forbidden_while_caches_fill"])
    told = ask(cluster, "read_namespaced_job", name="apirestart")
    assert told == as_default(RESPONSES["get_forbidden_while_caches_fill"])
    told = ask(cluster, "list_namespaced_job")
    assert told == as_default(RESPONSES["list_forbidden_while_caches_fill"])
    cluster.faults.fill_caches(resource="pods/log")
    told = ask(cluster, "read_namespaced_pod_log", "CoreV1Api", name="apirestart-2r4hp")
    assert told == as_default(RESPONSES["pod_log_forbidden_while_caches_fill"])


def test_a_deletion_of_what_changed_is_refused(cluster: Cluster) -> None:
    manifest = quick("quota", name="kept")
    manifest["spec"]["suspend"] = True  # so that nothing changes it
    job = create(cluster, manifest)
    cluster.wait_for(lambda: cluster.jobs()[0]["status"].get("conditions"))
    [job] = cluster.jobs()
    uid, version = job["metadata"]["uid"], job["metadata"]["resourceVersion"]
    for name, field, wanted, own in (
        ("delete_other_uid", "uid", "00000000-0000-0000-0000-000000000000", uid),
        ("delete_other_resource_version", "resourceVersion", "1", version),
    ):
        real = RESPONSES[name]
        body = {"preconditions": {field: wanted}}
        told = ask(cluster, "delete_namespaced_job", name="kept", body=body)
        theirs = re.findall(r"in record \(([^)]*)\)", real["message"])[0]
        assert told == {**real, "message": real["message"].replace(theirs, own)}


def test_too_many_requests_are_answered_with_text(cluster: Cluster) -> None:
    real = RESPONSES["create_too_many_requests"]
    assert real["body"] == TOO_MANY
    cluster.faults.refuse(429, TOO_MANY)
    with pytest.raises(json.JSONDecodeError):
        ask(cluster, "list_namespaced_job")


def test_every_recording_of_the_second_set_is_played() -> None:
    assert set(MANIFESTS) == set(SECOND_SET)
