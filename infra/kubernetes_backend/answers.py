"""The body of an accepted request, checked: a proxy may answer in the API server's place.

What it returns has the fields that this package reads without asking; others may be absent.
"""

import json
from collections.abc import Iterable
from typing import Any

from infra.kubernetes_backend.refusals import RefusedError, excerpt
from trainer.contract.json_text import parse_json

Object = dict[str, Any]
# Of each kind of object, what is read of every one.
NEEDED = {
    "jobs.batch": ("metadata.name", "metadata.uid", "metadata.resourceVersion"),
    "pods": ("metadata.name", "metadata.uid", "metadata.creationTimestamp"),
    "events": ("involvedObject.uid",),
}
# What the answer about one object is.
KINDS = {
    "jobs.batch": "Job",
    "pods": "Pod",
    "services": "Service",
    "deployments.apps": "Deployment",
    "inferenceservices.serving.kserve.io": "InferenceService",
    "the API's groups": "APIGroupList",
}
# A dry run's answer has no version, and a Pod's no uid.
NEEDED_OF_CREATED = {"jobs.batch": ("metadata.name", "metadata.uid")}
PARTS = ("metadata", "spec", "status")
MAPS = ("annotations", "labels")


def answer_of(action: str, code: int, body: bytes) -> Object:
    """The object, or the list of objects, that the body holds.

    Args:
        action: What was asked, as RBAC says it: "list pods".
        code: Of HTTP; below 300.
    Raises:
        RefusedError: With that code; the body is not what was asked for.
    """
    verb, _, resource = action.partition(" ")
    try:
        answer = parse_json(body)
    except (ValueError, RecursionError) as error:
        raise _unreadable(code, excerpt(body) or "an empty body") from error
    kind = answer.get("kind") if isinstance(answer, dict) else None
    if not isinstance(kind, str):
        raise _unreadable(code, f"JSON without a kind: {excerpt(body)}")
    if kind == "Status" and verb != "delete":
        raise _unreadable(code, f"a Status: {answer.get('message') or excerpt(body)}")
    needed = (NEEDED_OF_CREATED if verb == "create" else NEEDED).get(resource, ())
    if verb != "list":
        if kind not in ("Status", KINDS.get(resource, kind)):
            raise _unreadable(code, f"{kind} instead of {KINDS[resource]}")
        return answer if kind == "Status" else _checked(answer, resource, needed, code)
    items = answer.get("items") or []  # Go writes an empty list as null
    if not kind.endswith("List") or not isinstance(items, list):
        raise _unreadable(code, f"a {kind} instead of a list")
    return {**answer, "items": [_checked(item, resource, needed, code) for item in items]}


def _checked(found: Any, resource: str, needed: Iterable[str], code: int) -> Object:
    """The object with its parts, empty ones included."""
    if not isinstance(found, dict):
        raise _unreadable(code, f"{excerpt(json.dumps(found).encode())} instead of an object")
    made = {**found, **{part: found.get(part) or {} for part in PARTS}}
    if not all(isinstance(made[part], dict) for part in PARTS):
        raise _unreadable(code, f"an object whose {' or '.join(PARTS)} is no object")
    made["metadata"] = {**made["metadata"], **{m: made["metadata"].get(m) or {} for m in MAPS}}
    if not all(isinstance(made["metadata"][name], dict) for name in MAPS):
        raise _unreadable(code, f"an object whose {' or '.join(MAPS)} are no object")
    for path in needed:
        part, _, name = path.partition(".")
        held = made.get(part)
        if not isinstance(held, dict) or not isinstance(held.get(name), str):
            raise _unreadable(code, f"one of the {resource} without {path}")
    return made


def _unreadable(code: int, what: str) -> RefusedError:
    return RefusedError(code, "", what)
