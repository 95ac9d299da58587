"""Ask a cluster whether it would take a run: nothing is made, nothing is started.

    permissions   a SelfSubjectAccessReview for each right that infra/cluster/rbac.yaml lists
    objects       a server-side dry run of each: schema, admission, quota, Pod Security
    names         the claim, Secrets and service account that the objects name are there
    GPU classes   some node has each

What the account may not look at is said, and is no problem: the orchestrator need not.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from infra.backend import PlaceError
from infra.kubernetes_backend.connection import Connection
from infra.kubernetes_backend.interruptible import run
from infra.kubernetes_backend.refusals import RefusedError
from infra.manifests_pod import GPU_CLASS_LABEL, REGION_LABEL
from infra.manifests_settings import ClusterSettings

Object = dict[str, Any]
PATIENCE_SECONDS = 30.0
RIGHTS = Path(__file__).parents[1] / "cluster/rbac.yaml"
ROLE = "finetune-orchestrator"
COLLECTIONS = {"Job": ("jobs.batch", "/apis/batch/v1"), "Service": ("services", "/api/v1")}
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
            await _objects(cluster, wanted.objects, found)
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
        if not answer["status"]["allowed"]:
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
                    yield from ((group, resource, verb) for verb in rule["verbs"])


async def _objects(cluster: Connection, objects: Sequence[Object], found: Findings) -> None:
    for made in objects:
        resource, root = COLLECTIONS[made["kind"]]
        path = f"{root}/namespaces/{{namespace}}/{resource.partition('.')[0]}"
        name = f"{made['kind']} {made['metadata']['name']}"
        try:
            await cluster.create(resource, path, made, dry_run=True)
        except PlaceError as error:
            if _is_missing_namespace(error):
                found.problems.append(
                    f"cluster.namespace is not there (got {cluster.namespace!r}"
                    f"{'' if cluster.is_namespace_given else ', of your kubeconfig'}). "
                    "Make it, or name another."
                )
                return
            found.problems.append(f"cluster: {name} is not taken: {error}")
        except RefusedError as error:
            if error.code != 409:
                raise
            found.notes.append(f"{name} is there already")


def _is_missing_namespace(error: PlaceError) -> bool:
    refused = error.__cause__
    return isinstance(refused, RefusedError) and refused.code == 404


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
    if not wanted.gpus:
        return
    try:
        listed = await cluster.read("nodes", "/api/v1/nodes")
    except PlaceError as error:
        found.notes.append(f"GPU classes of the nodes were not looked at: {error}")
        return
    labels = [node["metadata"].get("labels", {}) for node in (listed or {}).get("items", [])]
    here = [one for one in labels if one.get(REGION_LABEL, wanted.region) == wanted.region]
    there = sorted({one[GPU_CLASS_LABEL] for one in here if GPU_CLASS_LABEL in one})
    found.problems += [
        f"{parameter} is on no node of region {wanted.region!r} (got {gpu!r}). "
        f"There are: {', '.join(there) or 'none'}. Take one of them, or another region."
        for parameter, gpu in wanted.gpus.items()
        if gpu not in there
    ]
