"""Ask a cluster whether it would take a run: nothing is made, nothing is started.

    permissions   a SelfSubjectAccessReview for each right that infra/cluster/rbac.yaml lists
    objects       a server-side dry run of each: schema, admission, quota
    Pods          a dry run of one from each template: quota, LimitRange, Pod Security. A Job is
                  accepted whatever its Pods are
    names         the claim, Secrets and service account that the objects name are there
    GPU classes   some node has each

What the account may not look at, or try, is said, and is no problem: a run need not.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from infra.backend import PlaceError
from infra.kubernetes_backend.connection import Connection
from infra.kubernetes_backend.diagnosis import without_names
from infra.kubernetes_backend.inference_services import InferenceServices
from infra.kubernetes_backend.interruptible import run
from infra.kubernetes_backend.manifests_pod import GPU_CLASS_LABEL, REGION_LABEL
from infra.kubernetes_backend.refusals import RefusedError
from trainer.contract.cluster_settings import ClusterSettings

Object = dict[str, Any]
PATIENCE_SECONDS = 30.0
RIGHTS = Path(__file__).parents[1] / "cluster/rbac.yaml"
ROLE = "finetune-orchestrator"
COLLECTIONS = {
    "Job": ("jobs.batch", "/apis/batch/v1"),
    "Service": ("services", "/api/v1"),
    "Pod": ("pods", "/api/v1"),
    "Deployment": ("deployments.apps", "/apis/apps/v1"),
    "InferenceService": ("inferenceservices.serving.kserve.io", "/apis/serving.kserve.io/v1beta1"),
}
ONLY_HERE = ("", "pods", "create")  # a right that a rehearsal uses, and a run does not
TEMPLATES = ("Job", "Deployment")
SERVING_GROUPS = ("apps", "serving.kserve.io")


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a run needs of the cluster, by the parameter that says so."""

    objects: Sequence[Object]
    claims: Mapping[str, str]  # {"pvc": "finetune-data"}
    secrets: Mapping[str, Sequence[str]] = field(default_factory=dict)
    service_accounts: Mapping[str, str] = field(default_factory=dict)
    gpus: Mapping[str, str] = field(default_factory=dict)  # {"trainer_gpu": "A40"}
    region: str = ""
    serves: bool = False
    servers: Mapping[str, Sequence[Object]] = field(default_factory=dict)  # by kind of service
    serving_kind: str = ""  # empty: what the cluster has


@dataclass
class Findings:
    """What would go wrong, and what could not be looked at."""

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def rehearse(wanted: Wanted, settings: ClusterSettings) -> Findings:
    """Ask the cluster of the kubeconfig.

    Raises:
        PlaceError: There is none, or it does not know us.
        ContactError: It does not answer.
    """

    async def work(_: object) -> Findings:
        found = Findings()
        async with Connection(settings.namespace, patience_seconds=PATIENCE_SECONDS) as cluster:
            await _permissions(cluster, wanted, found)
            made = [*wanted.objects, *await _servers(cluster, wanted, found)]
            if await _objects(cluster, made, found):
                await _pods(cluster, made, found)
            for parameter, resource, name in _names(wanted):
                await _name(cluster, parameter, resource, name, found)
            await _gpus(cluster, wanted, found)
        return found

    return run(work, lambda line: None)


async def _permissions(cluster: Connection, wanted: Wanted, found: Findings) -> None:
    path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
    for group, resource, verb in _rights(wanted):
        name, _, subresource = resource.partition("/")
        asked = {"group": group, "resource": name, "subresource": subresource, "verb": verb}
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {**asked, "namespace": cluster.namespace}},
        }
        answer = await cluster.create("selfsubjectaccessreviews", path, body)
        if not answer["status"].get("allowed"):
            shown = f"{resource}.{group}" if group else resource
            found.problems.append(
                f"cluster: your account may not {verb} {shown} in namespace "
                f"{cluster.namespace!r}. Ask for that permission: infra/cluster/rbac.yaml lists "
                "what is needed."
            )


def _rights(wanted: Wanted) -> Iterator[tuple[str, str, str]]:
    documents = yaml.safe_load_all(RIGHTS.read_text(encoding="utf-8"))
    (role,) = (d for d in documents if d["kind"] == "Role" and d["metadata"]["name"] == ROLE)
    services = wanted.serves or any(made["kind"] == "Service" for made in wanted.objects)
    for rule in role["rules"]:
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                serving = group in SERVING_GROUPS and not wanted.serves
                if not serving and (resource != "services" or services):
                    rights = ((group, resource, verb) for verb in rule["verbs"])
                    yield from (right for right in rights if right != ONLY_HERE)


async def _servers(cluster: Connection, wanted: Wanted, found: Findings) -> Sequence[Object]:
    """What the deploy step would make, for the kind of service that it would take."""
    if not wanted.servers:
        return []
    kind = wanted.serving_kind
    if not kind:
        kind = "kserve" if await InferenceServices.known_to(cluster) else "deployment"
    if kind == "kserve":
        found.notes.append("KServe makes the server's Pods itself: they were not tried")
    return wanted.servers[kind]


async def _objects(cluster: Connection, objects: Sequence[Object], found: Findings) -> bool:
    """Try each object; whether the namespace is there."""
    for made in objects:
        try:
            await _try(cluster, made, found)
        except PlaceError as error:
            if _is_missing_namespace(error):
                found.problems.append(
                    f"cluster.namespace is not there (got {cluster.namespace!r}"
                    f"{'' if cluster.is_namespace_given else ', of your kubeconfig'}). "
                    "Make it, or name another."
                )
                return False
            found.problems.append(f"cluster: {_named(made)} is refused: {error}")
    return True


async def _try(cluster: Connection, made: Object, found: Findings) -> None:
    """Have the object judged, not made. One that exists is not refused, whatever is full.

    Raises:
        PlaceError: It is refused.
    """
    resource, root = COLLECTIONS[made["kind"]]
    path = f"{root}/namespaces/{{namespace}}/{resource.partition('.')[0]}"
    try:
        await cluster.create(resource, path, made, dry_run=True)
    except PlaceError as error:
        refused = error.__cause__
        by_account = isinstance(refused, RefusedError) and refused.unauthorized
        if by_account or _is_missing_namespace(error) or made["kind"] == "Pod":
            raise
        if await cluster.read(resource, f"{path}/{made['metadata']['name']}") is None:
            raise
        found.notes.append(f"{_named(made)} exists already")
    except RefusedError as error:
        if error.code != 409:
            raise PlaceError(
                f"the cluster has no {resource} ({error}). Have it installed, or name another "
                "kind of service with serving.kind, as deployment."
            ) from error
        found.notes.append(f"{_named(made)} exists already")


async def _pods(cluster: Connection, objects: Sequence[Object], found: Findings) -> None:
    """Try a Pod of each template: what refuses it is otherwise seen when a Job has none."""
    told: set[str] = set()
    for owner in (made for made in objects if made["kind"] in TEMPLATES):
        try:
            await _try(cluster, _pod_of(owner), found)
        except PlaceError as error:
            refused = error.__cause__
            if isinstance(refused, RefusedError) and refused.unauthorized:
                found.notes.append(
                    f"Pods were not tried, so quota, limits and Pod Security are not known: {error}"
                )
                return
            why = without_names(str(error))
            if why not in told:
                told.add(why)
                found.problems.append(f"cluster: a Pod of {_named(owner)} is refused: {error}")


def _pod_of(owner: Object) -> Object:
    """A Pod as the owner's controller would make it."""
    template, name = owner["spec"]["template"], owner["metadata"]["name"]
    metadata = {**template["metadata"], "name": f"{name}-rehearsal"}
    if namespace := owner["metadata"].get("namespace"):
        metadata["namespace"] = namespace
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def _named(made: Object) -> str:
    return f"{made['kind']} {made['metadata']['name']}"


def _is_missing_namespace(error: PlaceError) -> bool:
    refused = error.__cause__
    return isinstance(refused, RefusedError) and refused.code == 404 and refused.of_namespace


def _names(wanted: Wanted) -> Iterator[tuple[str, str, str]]:
    for parameter, name in wanted.claims.items():
        yield parameter, "persistentvolumeclaims", name
    for parameter, names in wanted.secrets.items():
        for name in names:
            yield parameter, "secrets", name
    for parameter, name in wanted.service_accounts.items():
        yield parameter, "serviceaccounts", name


async def _name(
    cluster: Connection, parameter: str, resource: str, name: str, found: Findings
) -> None:
    try:
        there = await cluster.read(resource, f"/api/v1/namespaces/{{namespace}}/{resource}/{name}")
    except PlaceError as error:
        found.notes.append(f"{parameter}: {name!r} was not looked at: {error}")
        return
    if there is None:
        found.problems.append(
            f"{parameter} names none of the {resource} of namespace {cluster.namespace!r} "
            f"(got {name!r}). Make it, or name another."
        )


async def _gpus(cluster: Connection, wanted: Wanted, found: Findings) -> None:
    """Compare region and GPU classes with the labels of the nodes."""
    if not wanted.gpus and not wanted.region:
        return
    try:
        listed = await cluster.read("nodes", "/api/v1/nodes")
    except PlaceError as error:
        found.notes.append(f"region and GPU classes were not compared with the nodes: {error}")
        return
    labels = [node["metadata"].get("labels", {}) for node in (listed or {}).get("items", [])]
    regions = sorted({one[REGION_LABEL] for one in labels if REGION_LABEL in one})
    if wanted.region and wanted.region not in regions:
        found.problems.append(
            f"region is on no node (got {wanted.region!r}). There are: "
            f"{', '.join(regions) or 'none'}. Take one of them, or leave it out: ''."
        )
        return
    here = [one for one in labels if wanted.region in ("", one.get(REGION_LABEL))]
    there = sorted({one[GPU_CLASS_LABEL] for one in here if GPU_CLASS_LABEL in one})
    place = f"node of region {wanted.region!r}" if wanted.region else "node"
    found.problems += [
        f"{parameter} is on no {place} (got {gpu!r}). "
        f"There are: {', '.join(there) or 'none'}. Take one of them"
        + (", or another region." if wanted.region else ".")
        for parameter, gpu in wanted.gpus.items()
        if gpu not in there
    ]
