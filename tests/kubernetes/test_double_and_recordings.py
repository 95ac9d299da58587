"""The double of the cluster does what a real Kubernetes 1.36 was recorded doing."""

import asyncio
import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes_asyncio import client, config

from tests.kubernetes_double import job_controller
from tests.kubernetes_double.cluster import NAMESPACE, Cluster

RECORDINGS = Path(__file__).parent / "recordings"
RESPONSES = json.loads((RECORDINGS / "responses.json").read_text())
MANIFESTS = {
    manifest["metadata"]["name"]: manifest
    for manifest in yaml.safe_load_all((RECORDINGS / "manifests.yaml").read_text())
    if manifest["kind"] == "Job"
}
MANIFESTS["cancelled"] = json.loads(json.dumps(MANIFESTS["evicted"]))
MANIFESTS["cancelled"]["metadata"]["name"] = "cancelled"
del MANIFESTS["cancelled"]["spec"]["podFailurePolicy"]
SECOND_SET = "quota limitrange podsecurity apirestart apioutage crashloop".split()
Change = tuple[str, dict[str, Any]]


def recorded(name: str) -> list[Change]:
    lines = (RECORDINGS / f"{name}.jsonl").read_text().splitlines()
    return [(event["type"], event["object"]) for event in map(json.loads, lines)]


def ask(cluster: Cluster, method: str, api: str = "BatchV1Api", **arguments: Any) -> Any:
    """The parsed body that the real client gets, whatever the status."""

    async def call() -> Any:
        await config.load_kube_config(str(cluster.kubeconfig))
        async with client.ApiClient() as connection:
            bound = getattr(getattr(client, api)(connection), method)
            response = await bound(namespace=NAMESPACE, _preload_content=False, **arguments)
            return json.loads(await response.read())

    return asyncio.run(call())


def create(cluster: Cluster, manifest: dict[str, Any], **options: Any) -> Any:
    return ask(cluster, "create_namespaced_job", body=manifest, **options)


def quick(name: str) -> dict[str, Any]:
    """The recorded manifest with shorter sleeps."""
    manifest = json.loads(json.dumps(MANIFESTS[name]))
    command = manifest["spec"]["template"]["spec"]["containers"][0]["command"]
    command[-1] = re.sub(r"sleep [34]\b", "sleep 0.3", command[-1])
    if name == "ranks":
        command[-1] = "echo rank $JOB_COMPLETION_INDEX; while [ ! -e $0 ]; do sleep 0.01; done"
    if name == "deadline":
        manifest["spec"]["activeDeadlineSeconds"] = 1000  # the test has it pass
        manifest["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 2
        # The first process of a real container gets no SIGTERM that it does not handle.
        command[-1] = "trap '' TERM; echo run; sleep 100"
    if name == "oom":  # no memory limit is enforced here: the test kills it
        command[-1] = "while true; do sleep 0.1; done"
    if name == "evicted":
        # The second Pod is to succeed soon, the first to run until it is evicted.
        loop = "if [ -e $0 ]; then exit 0; fi; touch $0; while true; do sleep 0.05; done"
        command[-1] = f"trap 'echo got TERM; exit 143' TERM; echo run; {loop}"
    return manifest


def job_states(changes: list[Change]) -> list[Any]:
    """What a Job's status said, in order, without what depends on the clock.

    Left out: `ready`, which a container that ends at once never reaches, and the
    moment at which an ended Pod is moved from "uncounted" to its count.
    """
    states: list[Any] = []
    for change, obj in changes:
        if obj["kind"] != "Job":
            continue
        status = obj.get("status", {})
        conditions = [(c["type"], c["reason"], _anonymous(c["message"])) for c in _conditions(obj)]
        counts = {name: status.get(name) for name in ("active", "succeeded", "completedIndexes")}
        state = (change == "DELETED", counts, conditions)
        if not states or states[-1] != state:
            states.append(state)
    return states


def pod_states(changes: list[Change]) -> list[list[Any]]:
    """For each Pod in order of its creation, what its status said."""
    pods: dict[str, list[Any]] = {}
    for change, obj in changes:
        if obj["kind"] != "Pod":
            continue
        states = pods.setdefault(obj["metadata"]["uid"], [])
        container = (obj["status"].get("containerStatuses") or [{"state": {}}])[0]
        state = {
            "change": change,
            "phase": obj["status"]["phase"],
            "deleted": obj["metadata"].get("deletionGracePeriodSeconds"),
            "finalizers": obj["metadata"].get("finalizers"),
            "conditions": sorted(
                (c["type"], c["status"], c.get("reason"), c.get("message"))
                for c in _conditions(obj)
            ),
            "container": {
                name: {key: found[key] for key in ("reason", "exitCode", "message") if key in found}
                for name, found in container["state"].items()
            },
            "ready": (container.get("ready"), container.get("started")),
        }
        if not states or states[-1] != state:
            states.append(state)
    return list(pods.values())


def event_kinds(changes: list[Change]) -> list[Any]:
    """The Events, as (kind of object, type, reason), each once and sorted."""
    return sorted(
        {
            (obj["involvedObject"]["kind"], obj["type"], obj["reason"])
            for _, obj in changes
            if obj["kind"] == "Event"
        }
    )


def _conditions(obj: dict[str, Any]) -> list[dict[str, Any]]:
    return obj.get("status", {}).get("conditions", [])


def _anonymous(message: str) -> str:
    return re.sub(r"(pod default/[a-z0-9]+)-[a-z0-9]{5}", r"\1-XXXXX", message)


def finished(cluster: Cluster) -> bool:
    return any(
        condition["type"] in ("Complete", "Failed")
        for job in cluster.jobs()
        for condition in _conditions(job)
    )


def play(cluster: Cluster, name: str, monkeypatch: pytest.MonkeyPatch) -> list[Change]:
    """Let happen in the double what happened in the recording; every change it made."""
    manifest = quick(name)
    if name == "unschedulable":
        cluster.node.gpus = 0
    cluster.node.images = {"docker.io/local/bb:1": None}  # a shell: this machine's
    signal_file = cluster.folder / "signal"
    if name in ("evicted", "ranks"):
        container = manifest["spec"]["template"]["spec"]["containers"][0]
        container["command"].append(str(signal_file))
    create(cluster, manifest)
    if name == "ranks":
        cluster.wait_for(lambda: [p["status"]["phase"] for p in cluster.pods()] == ["Running"] * 2)
        end_together(cluster, signal_file, monkeypatch)
    if name in ("evicted", "oom", "cancelled", "deadline"):
        pod = cluster.running_pod()
        log = cluster.folder / "pods" / pod["metadata"]["uid"] / "log"
        cluster.wait_for(log.exists)
    if name == "evicted":
        cluster.wait_for(signal_file.exists)
        cluster.do(lambda: cluster.kubelet.evict(pod))
    if name == "oom":
        cluster.do(lambda: cluster.kubelet.kill_for_memory(pod))
    if name == "deadline":
        cluster.wait_for(lambda: b"run" in log.read_bytes())
        [job] = cluster.jobs()
        of_job = (NAMESPACE, name, job["metadata"]["uid"])
        cluster.do(lambda: cluster.controller._exceed(*of_job))
    if name == "cancelled":
        cluster.wait_for(lambda: b"run" in log.read_bytes())
        options = {"propagationPolicy": "Background"}
        ask(cluster, "delete_namespaced_job", name=name, body=options)
        cluster.wait_for(lambda: not cluster.pods())
    elif name in ("noimage", "unschedulable"):
        stuck = ("ErrImageNeverPull", "Unschedulable")
        cluster.wait_for(lambda: any(words in json.dumps(cluster.pods()) for words in stuck))
        cluster.wait_for(lambda: any(job["status"].get("active") for job in cluster.jobs()))
    else:
        cluster.wait_for(lambda: finished(cluster))
    return [(what, obj) for _, what, _, obj in cluster.history()]


def end_together(cluster: Cluster, signal_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have both Pods end in one look of the controller, which has seen them run."""
    time.sleep(3 * job_controller.BATCH_SECONDS)
    cluster.wait_for(lambda: [job["status"].get("ready") for job in cluster.jobs()] == [2])
    with monkeypatch.context() as patch:
        patch.setattr(job_controller, "BATCH_SECONDS", 3600.0)
        signal_file.touch()
        cluster.wait_for(lambda: {p["status"]["phase"] for p in cluster.pods()} == {"Succeeded"})
    cluster.do(lambda: cluster.controller._soon(NAMESPACE, "ranks"))


@pytest.mark.parametrize("name", sorted(MANIFESTS))
def test_a_job_and_its_pods_are_as_recorded(
    cluster: Cluster, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, ours = recorded(name), play(cluster, name, monkeypatch)
    assert job_states(ours) == job_states(real)
    assert sorted(map(str, pod_states(ours))) == sorted(map(str, pod_states(real)))
    if name != "cancelled":  # events of its recording were not kept
        assert event_kinds(ours) == event_kinds(real)
    if name in ("ok", "ranks"):
        assert_fields_of_the_recorded(ours, real)


def assert_fields_of_the_recorded(ours: list[Change], real: list[Change]) -> None:
    """What is stored of each kind has at least the fields of the real one."""
    for kind in ("Job", "Pod", "Event"):
        of_real = next(obj for _, obj in reversed(real) if obj["kind"] == kind)
        of_ours = next(obj for _, obj in reversed(ours) if obj["kind"] == kind)
        assert set(of_ours["metadata"]) >= set(of_real["metadata"]) - {"annotations"}
        assert set(of_ours["metadata"].get("labels", {})) == set(
            of_real["metadata"].get("labels", {})
        )
        assert set(of_ours.get("status", {})) >= set(of_real.get("status", {})) - {
            "observedGeneration",
            "resources",
        }
    spec = next(obj["spec"] for _, obj in real if obj["kind"] == "Job")
    assert set(ours[-1][1].get("spec", spec)) == set(spec)


def test_refusals_have_the_recorded_bodies(cluster: Cluster) -> None:
    manifest = {**MANIFESTS["evicted"], "metadata": {"name": "cancelled"}}
    create(cluster, manifest)
    assert create(cluster, manifest) == RESPONSES["create_existing_name"]

    bad = json.loads(json.dumps(MANIFESTS["ok"]))
    bad["metadata"]["name"] = "Bad_Name"
    del bad["spec"]["template"]["spec"]["restartPolicy"]
    assert create(cluster, bad) == RESPONSES["create_invalid"]

    unknown = {**manifest, "spec": {**manifest["spec"], "nosuchfield": 1}}
    strict = create(cluster, unknown, field_validation="Strict")
    assert strict == RESPONSES["create_unknown_field_strict"]

    missing = ask(cluster, "read_namespaced_job", name="none")
    assert missing == RESPONSES["get_missing"]

    options = {"propagationPolicy": "Background"}
    deleted = ask(cluster, "delete_namespaced_job", name="cancelled", body=options)
    del deleted["details"]["uid"], RESPONSES["delete_background"]["details"]["uid"]
    assert deleted == RESPONSES["delete_background"]

    cluster.faults.allowed = lambda request: False
    assert create(cluster, manifest) == RESPONSES["create_forbidden"]


def test_a_template_can_not_be_changed(cluster: Cluster) -> None:
    job = create(cluster, {**MANIFESTS["evicted"], "metadata": {"name": "cancelled"}})
    job["spec"]["template"]["spec"]["containers"][0]["image"] = "x"
    del job["metadata"]["resourceVersion"]
    real = RESPONSES["update_immutable_template"]
    ours = ask(cluster, "replace_namespaced_job", name="cancelled", body=job)
    assert {**ours, "message": "", "details": ""} == {**real, "message": "", "details": ""}
    assert ours["details"]["causes"][0]["field"] == "spec.template"
    assert ours["message"].endswith("field is immutable")


def test_a_watch_from_a_forgotten_version_is_told_that_it_is_gone(cluster: Cluster) -> None:
    version = ask(cluster, "list_namespaced_job")["metadata"]["resourceVersion"]
    create(cluster, MANIFESTS["ok"])
    cluster.do(cluster.store.forget_history)
    told = ask(cluster, "list_namespaced_job", watch=True, resource_version=version)
    assert (told["type"], told["object"]["code"], told["object"]["reason"]) == (
        "ERROR",
        410,
        "Expired",
    )


def test_every_recording_is_played_and_every_refusal_compared() -> None:
    # Those of the second set are played by test_second_recordings.py.
    recordings = {path.stem for path in RECORDINGS.glob("*.jsonl")}
    assert recordings == set(MANIFESTS) | set(SECOND_SET)
    source = Path(__file__).read_text()
    assert [name for name in RESPONSES if f'RESPONSES["{name}"]' not in source] == []
