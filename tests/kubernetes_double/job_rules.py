"""Rules by which a Job's Pods are made and judged: plain data in, plain data out."""

import contextlib
import copy
from typing import Any

from tests.kubernetes_double.store import Object, generated_suffix, now

TRACKING = "batch.kubernetes.io/job-tracking"
INDEX = "batch.kubernetes.io/job-completion-index"


def failure_policy(job: Object, pod: Object) -> tuple[str, tuple[str, str] | None]:
    """What the Job's failure policy says of a failed Pod: (action, why the Job fails)."""
    name = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
    for index, rule in enumerate(job["spec"].get("podFailurePolicy", {}).get("rules", [])):
        for pattern in rule.get("onPodConditions", []):
            if has(pod["status"], pattern["type"]):
                return rule["action"], None
        on_codes = rule.get("onExitCodes")
        for container in pod["status"].get("containerStatuses", []) if on_codes else []:
            code = container["state"].get("terminated", {}).get("exitCode", 0)
            meant = on_codes.get("containerName") in (None, container["name"])
            if code and meant and (code in on_codes["values"]) == (on_codes["operator"] == "In"):
                why = (
                    f"Container {container['name']} for pod {name} failed with exit code {code} "
                    f"matching {rule['action']} rule at index {index}"
                )
                fails = rule["action"] == "FailJob"
                return rule["action"], ("PodFailurePolicy", why) if fails else None
    return "Count", None


def pod_of(job: Object, index: int | None) -> Object:
    template = copy.deepcopy(job["spec"]["template"])
    metadata, owner = template["metadata"], job["metadata"]
    part = owner["name"] if index is None else f"{owner['name']}-{index}"
    metadata |= {"generateName": f"{part}-", "name": f"{part}-{generated_suffix()}"}
    metadata["finalizers"] = [TRACKING]
    metadata["ownerReferences"] = [
        {
            "apiVersion": "batch/v1",
            "blockOwnerDeletion": True,
            "controller": True,
            "kind": "Job",
            "name": owner["name"],
            "uid": owner["uid"],
        }
    ]
    if index is not None:
        metadata.setdefault("annotations", {})[INDEX] = str(index)
        metadata["labels"][INDEX] = str(index)
        template["spec"]["hostname"] = part
        path = f"metadata.labels['{INDEX}']"
        reference: Any = {"fieldRef": {"apiVersion": "v1", "fieldPath": path}}
        for container in template["spec"]["containers"]:
            container.setdefault("env", []).append(
                {"name": "JOB_COMPLETION_INDEX", "valueFrom": reference}
            )
    return {
        "metadata": metadata,
        "spec": template["spec"],
        "status": {"phase": "Pending", "qosClass": "BestEffort"},
    }


def condition(kind: str, why: tuple[str, str]) -> Object:
    reason, message = why
    return {
        "lastProbeTime": now(),
        "lastTransitionTime": now(),
        "message": message,
        "reason": reason,
        "status": "True",
        "type": kind,
    }


def has(status: Object, kind: str) -> bool:
    return any(c["type"] == kind and c["status"] == "True" for c in status.get("conditions", []))


def has_target(status: Object) -> bool:
    return has(status, "FailureTarget") or has(status, "SuccessCriteriaMet")


def is_ready(pod: Object) -> bool:
    return has(pod["status"], "Ready")


def index_of(pod: Object) -> int:
    return int(pod["metadata"]["labels"][INDEX])


def done_indexes(status: Object) -> set[int]:
    with contextlib.suppress(ValueError):
        return {int(index) for index in status.get("completedIndexes", "").split(",")}
    return set()
