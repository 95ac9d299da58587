"""infra/cluster and infra/images: valid, under few rights, and with nothing missing."""

import dataclasses
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from prefect.utilities.templating import apply_values
from prefect_kubernetes.worker import KubernetesWorker, KubernetesWorkerJobConfiguration

from infra.backend import PlaceError, Resources
from infra.kubernetes_backend import manifests_job as manifests
from infra.kubernetes_backend.jobs import KubernetesBackend
from infra.kubernetes_backend.preflight import Wanted, rehearse
from infra.serving_place import ServingError, ServingSpec
from tests.images.dockerfile import Copy, recipe_of
from tests.kubernetes.conftest import CLAIM, backend_with, follow, spec
from tests.kubernetes.shipped import FOLDER, LISTED, MANIFESTS
from tests.kubernetes_double.admission import violations_of_restricted
from tests.kubernetes_double.cluster import Cluster
from tests.kubernetes_double.faults import Request
from trainer.contract.cluster_settings import ClusterSettings
from trainer.contract.parameters import Parameters

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "infra/images"
TEMPLATE = json.loads((FOLDER / "base-job-template.json").read_text())
Rule = tuple[str, str, str]  # API group, resource, verb


def named(kind: str, name: str) -> dict[str, Any]:
    return next(o for o in MANIFESTS if (o["kind"], o["metadata"]["name"]) == (kind, name))


def rules_of(role: str) -> set[Rule]:
    return {
        (group, resource, verb)
        for rule in named("Role", role)["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_every_file_of_the_folder_is_applied() -> None:
    assert set(LISTED) == {p.name for p in FOLDER.glob("*.yaml")} - {"kustomization.yaml"}


@pytest.mark.parametrize("version", ["1.31", "1.34", "1.37"])
def test_every_object_suits_the_published_schemas(version: str) -> None:
    for made in MANIFESTS:
        kubernetes_validate.validate(made, version, strict=True)
        assert "namespace" not in made["metadata"]


def test_every_deployment_passes_the_restricted_standard() -> None:
    pods = [o["spec"]["template"]["spec"] for o in MANIFESTS if o["kind"] == "Deployment"]
    assert len(pods) == 2
    assert [violations_of_restricted(pod) for pod in pods] == [[], []]


def test_the_orchestrators_role_is_what_the_backend_asks_for_and_nothing_else(
    cluster: Cluster, volume: Path, tmp_path: Path
) -> None:
    granted = rules_of("finetune-orchestrator")

    def allowed(request: Request) -> bool:
        return (request.group, request.resource, request.verb) in granted

    cluster.faults.allowed = allowed
    cluster.node.gpus = 0
    impatient = backend_with(tmp_path, pending_timeout_seconds=0.5)
    follow(impatient, spec())  # says why it waits, and gives up
    cluster.node.gpus = 8
    backend = backend_with(tmp_path)
    nodes = dataclasses.replace(spec(), resources=Resources(nodes=2))
    follow(backend, nodes)
    backend.submit(nodes)  # adopts
    backend.cancel(nodes)
    backend.submit(spec(until="never"))
    backend.stop(CLAIM, "run")
    assert not cluster.jobs()
    served = ServingSpec(
        run_name="run",
        volume=CLAIM,
        model="",
        model_digest="",
        revision=1,
        image="finetune-steps:0.2.0",
        gpus=0,
    )
    for kind in ("kserve", "deployment"):
        place = backend.serving(kind)
        with pytest.raises(ServingError):  # the stand-in is no server
            place.start(served, None, print)
        assert (place.serving(served) is None) == (kind == "deployment")
        place.withdraw(served, None, print)
        assert not place.remove("run")
    job = manifests.objects(spec(), ClusterSettings())[0]
    assert rehearse(Wanted(objects=[job], claims={}), ClusterSettings()).problems == []
    reviews = ("authorization.k8s.io", "", "create")  # every account may ask what it may
    # Every account may ask which groups there are: that names no resource.
    asked = {(r.group, r.resource, r.verb) for r in cluster.faults.seen if r.resource} - {reviews}
    assert asked == granted


def test_what_a_rehearsal_may_not_look_at_is_said(
    cluster: Cluster, volume: Path, tmp_path: Path
) -> None:
    granted = rules_of("finetune-orchestrator") - {("", "pods", "create")}
    cluster.faults.allowed = lambda r: (r.group, r.resource, r.verb) in granted or not r.resource
    job = manifests.objects(spec(), ClusterSettings())[0]
    wanted = Wanted(objects=[job], claims={"pvc": CLAIM}, gpus={"trainer_gpu": "A40"})
    found = rehearse(wanted, ClusterSettings())
    assert found.problems == []
    told = "\n".join(found.notes)
    for words in ("Pods were not tried", "pvc: 'finetune-data' was not looked at", "GPU classes"):
        assert words in told


def test_a_permission_that_is_taken_away_is_missed(
    backend: KubernetesBackend, cluster: Cluster
) -> None:
    cluster.faults.allowed = lambda request: request.verb != "create"
    with pytest.raises(PlaceError, match=r"infra/cluster/rbac\.yaml"):
        backend.submit(spec())


ASKED_OF_PREFECT = """
from prefect.server.concurrency.lease_storage import get_concurrency_lease_storage
from prefect.settings import get_current_settings
from prefect_kubernetes.settings import KubernetesSettings
print(get_concurrency_lease_storage().storage_path)
print(get_current_settings().server.analytics_enabled)
print(get_current_settings().api.url)
print(*KubernetesSettings().observer.namespaces)
"""


def test_the_variables_of_server_and_worker_are_settings_that_prefect_knows(tmp_path: Path) -> None:
    """A misspelt one would be ignored in silence."""
    environment = {"PATH": os.environ["PATH"]}
    for made in (m for m in MANIFESTS if m["kind"] == "Deployment"):
        for variable in made["spec"]["template"]["spec"]["containers"][0]["env"]:
            environment[variable["name"]] = variable.get("value", "research")
    environment["PREFECT_HOME"] = str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", ASKED_OF_PREFECT], env=environment, capture_output=True, text=True
    )
    assert done.stdout.splitlines() == [
        f"{tmp_path}/concurrency_leases",
        "False",
        "http://prefect-server:4200/api",
        "research",
    ], done.stderr


# --- the work pool ----------------------------------------------------------------------


def job_of_the_worker(**given: Any) -> dict[str, Any]:
    """The Job that Prefect's worker makes of the template; without blocks, so without a server."""
    properties = TEMPLATE["variables"]["properties"]
    variables = {n: p["default"] for n, p in properties.items() if p.get("default") is not None}
    variables |= {"name": "flow-run", "command": "prefect flow-run execute", **given}
    values = apply_values(TEMPLATE["job_configuration"], variables)
    configuration = KubernetesWorkerJobConfiguration(**values)
    configuration._populate_env_in_manifest()
    configuration._populate_image_if_not_present()
    configuration._populate_command_if_not_present()
    configuration._populate_generate_name_if_not_present()
    return configuration.job_manifest


def test_the_orchestrators_job_is_accepted_under_the_restricted_standard() -> None:
    job = job_of_the_worker()
    kubernetes_validate.validate(job, "1.36", strict=True)
    pod = job["spec"]["template"]["spec"]
    assert violations_of_restricted(pod) == []
    assert pod["serviceAccountName"] == "finetune-orchestrator"
    [volume] = [v for v in pod["volumes"] if "persistentVolumeClaim" in v]
    assert volume["persistentVolumeClaim"]["claimName"] == CLAIM
    [container] = pod["containers"]
    assert {"name": "FINETUNE_BACKEND", "value": "kubernetes"} in container["env"]
    assert container["volumeMounts"][0]["mountPath"] == f"/{CLAIM}"
    assert "nvidia.com/gpu" not in json.dumps(job)


def test_the_workers_pool_starts_pods_where_the_worker_is(tmp_path: Path) -> None:
    container = named("Deployment", "finetune-worker")["spec"]["template"]["spec"]["containers"][0]
    shell, option, script = container["command"]
    made = tmp_path / "template.json"
    filled_in, worker = script.split(" && exec ")
    filled_in = filled_in.replace("/app/", f"{ROOT}/").replace("/tmp/template.json", str(made))
    environment = {"PATH": os.environ["PATH"], "NAMESPACE": "research"}
    subprocess.run([shell, option, filled_in], env=environment, check=True)
    template = json.loads(made.read_text())
    namespace = template["variables"]["properties"]["namespace"]
    assert namespace.pop("default") == "research"
    namespace["default"] = "default"
    assert template == TEMPLATE
    assert "--base-job-template=/tmp/template.json" in worker


def test_the_worker_leaves_the_pods_labels_as_they_are() -> None:
    """Prefect's worker writes labels of its own over those of the template."""
    source = Path(inspect.getfile(KubernetesWorker)).read_text()
    theirs = set(re.findall(r'"(app\.kubernetes\.io/[a-z-]+|prefect\.io/[a-z-]+)"', source))
    assert "app.kubernetes.io/name" in theirs
    labels = job_of_the_worker()["spec"]["template"]["metadata"]["labels"]
    assert labels["app.kubernetes.io/component"] == "orchestrator"
    assert not theirs & set(labels)


def test_another_claim_is_mounted_under_its_name() -> None:
    pod = job_of_the_worker(pvc="other")["spec"]["template"]["spec"]
    assert pod["containers"][0]["volumeMounts"][0]["mountPath"] == "/other"
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == "other"


def test_the_template_has_every_variable_of_the_worker_it_is_made_for() -> None:
    theirs = KubernetesWorker.get_default_base_job_template()["variables"]["properties"]
    assert set(TEMPLATE["variables"]["properties"]) == {*theirs, "pvc"}


# --- images ---------------------------------------------------------------------------


def test_make_images_builds_those_that_the_manifests_and_parameters_name(tmp_path: Path) -> None:
    builder = tmp_path / "builder"
    builder.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    builder.chmod(0o755)

    def built_by(*words: str) -> dict[str, str]:
        (tmp_path / "asked").unlink(missing_ok=True)
        subprocess.run(["make", "images", f"BUILDER={builder}", *words], cwd=ROOT, check=True)
        asked = [line.split() for line in (tmp_path / "asked").read_text().splitlines()]
        return {words[4]: words[2] for words in asked}

    every = built_by("IMAGES=steps orchestrator vllm")  # the last one if named: docs/cluster.md
    assert set(every.values()) == {f"infra/images/{p.name}" for p in IMAGES.iterdir()}
    built = built_by()
    pods = [o["spec"]["template"]["spec"] for o in MANIFESTS if o["kind"] == "Deployment"]
    named = {pod["containers"][0]["image"] for pod in pods}
    named.add(TEMPLATE["variables"]["properties"]["image"]["default"])
    fields = Parameters.model_fields
    named.add(f"{fields['finetuner_image'].default}:{fields['finetuner_tag'].default}")
    assert named == set(built)
    refused = subprocess.run(
        ["make", "images", "BUILDER="], cwd=ROOT, capture_output=True, text=True
    )
    assert refused.returncode and "Install one of them" in refused.stderr


def test_an_image_is_built_from_what_it_copies_alone() -> None:
    """Neither data nor an environment of gigabytes is sent to the builder."""
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    sent = {line[1:] for line in ignored if line.startswith("!")}
    assert "*" in ignored
    copied = {
        source
        for dockerfile in IMAGES.iterdir()
        for _, action in recipe_of(dockerfile).actions
        if isinstance(action, Copy)
        for source in action.sources
    }
    assert sent == copied
