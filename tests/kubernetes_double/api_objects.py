"""What the API server does to objects besides storing them: defaults, selectors, patches.

Also the small pieces of its answers: Status bodies, names of kinds, lines of logs.
"""

import json
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from tests.kubernetes_double.admission import RefusedError
from tests.kubernetes_double.store import KINDS, Object

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
# The defaults that an API server writes into a Job; only those that a reader of it may miss.
JOB_DEFAULTS = {
    "backoffLimit": 6,
    "completionMode": "NonIndexed",
    "completions": 1,
    "manualSelector": False,
    "parallelism": 1,
    "suspend": False,
}


def status_of(refused: RefusedError) -> Object:
    """The Status body of a refusal."""
    return {
        "apiVersion": "v1",
        "code": refused.code,
        **({"details": refused.details} if refused.details else {}),
        "kind": "Status",
        "message": refused.message,
        "metadata": {},
        "reason": refused.reason,
        "status": "Failure",
    }


def kind_of(request: web.Request) -> str:
    kind = request.match_info["kind"]
    if kind not in KINDS:
        raise RefusedError(404, "NotFound", "the server could not find the requested resource")
    return kind


def name_of(request: web.Request) -> str:
    return request.match_info["name"]


async def body_of(request: web.Request) -> Object:
    text = await request.text()
    return json.loads(text) if text else {}


def line_of(obj: Object) -> bytes:
    return json.dumps(obj).encode() + b"\n"


def details_of(kind: str, name: str) -> Object:
    group = KINDS[kind][0].rpartition("/")[0]
    return {**({"group": group} if group else {}), "kind": kind, "name": name}


def qualified(kind: str) -> str:
    group = KINDS[kind][0].rpartition("/")[0]
    return f"{kind}.{group}" if group else kind


def missing(kind: str, name: str) -> RefusedError:
    return RefusedError(
        404, "NotFound", f'{qualified(kind)} "{name}" not found', details_of(kind, name)
    )


def conflict(kind: str, name: str, why: str) -> RefusedError:
    words = f'Operation cannot be fulfilled on {qualified(kind)} "{name}": {why}'
    return RefusedError(409, "Conflict", words, details_of(kind, name))


def unmet_precondition(kind: str, metadata: Object, field: str, wanted: str) -> RefusedError:
    """A deletion of what is not as it was: its details name the kind, not the resource."""
    shown, what = ("UID", "deleted and then recreated")
    if field == "resourceVersion":
        shown, what = "ResourceVersion", "modified"
    group, kind_name = KINDS[kind]
    of_group = group.rpartition("/")[0]
    known = "the UID in record" if shown == "UID" else "the ResourceVersion in record"
    words = (
        f"Operation cannot be fulfilled on {kind_name}{of_group and f'.{of_group}'} "
        f'"{metadata["name"]}": the {shown} in the precondition ({wanted}) does not match '
        f"{known} ({metadata.get(field)}). The object might have been {what}"
    )
    details = {**details_of(kind, metadata["name"]), "kind": kind_name}
    return RefusedError(409, "Conflict", words, details)


def complete_job(job: Object) -> None:
    """Give the Job its uid, selector, labels and defaults."""
    uid, name = str(uuid.uuid4()), job["metadata"]["name"]
    labels = {
        "batch.kubernetes.io/controller-uid": uid,
        "batch.kubernetes.io/job-name": name,
        "controller-uid": uid,
        "job-name": name,
    }
    spec = job["spec"]
    if QUEUE_LABEL in job["metadata"].get("labels", {}):
        spec["suspend"] = True  # Kueue's webhook: its controller resumes what it admits
    replacement = "Failed" if "podFailurePolicy" in spec else "TerminatingOrFailed"
    job["metadata"]["uid"] = uid
    job["spec"] = {**JOB_DEFAULTS, "podReplacementPolicy": replacement, **spec}
    job["spec"]["selector"] = {
        "matchLabels": {"batch.kubernetes.io/controller-uid": uid},
    }
    template = spec["template"].setdefault("metadata", {})
    job["metadata"].setdefault("labels", template.get("labels", {}))
    for metadata in (job["metadata"], template):
        metadata["labels"] = {**metadata.get("labels", {}), **labels}
    job["status"] = {}


def selector(request: web.Request) -> Callable[[Object], bool]:
    """Whether an object suits the request's label and field selectors (=, == and !=)."""
    labels = [part for part in request.query.get("labelSelector", "").split(",") if part]
    fields = [part for part in request.query.get("fieldSelector", "").split(",") if part]

    def one(obj: Object, requirement: str, value: Callable[[Object, str], Any]) -> bool:
        if "!=" in requirement:
            key, _, wanted = requirement.partition("!=")
            return value(obj, key) != wanted
        key, equals, wanted = requirement.replace("==", "=").partition("=")
        return value(obj, key) == wanted if equals else value(obj, key) is not None

    def selected(obj: Object) -> bool:
        return all(
            one(obj, part, lambda o, key: o["metadata"].get("labels", {}).get(key))
            for part in labels
        ) and all(one(obj, part, value_at) for part in fields)

    return selected


def value_at(obj: Object, path: str) -> Any:
    value: Any = obj
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def merged(before: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    result = dict(before) if isinstance(before, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def without(before: Object, after: Object) -> Object:
    """A merge patch that removes what `before` had and `after` has not."""
    patch: Object = {key: None for key in before if key not in after}
    for key, value in before.items():
        if isinstance(value, dict) and isinstance(after.get(key), dict):
            patch[key] = without(value, after[key])
    return {key: value for key, value in patch.items() if value is None or value}


def container_state(pod: Object) -> Object:
    statuses = pod["status"].get("containerStatuses", [])
    return statuses[0]["state"] if statuses else {}


def recent(line: bytes, since: str | None) -> bool:
    """Whether a line of the log is not older than `since`, to the second as the kubelet does."""
    if since is None:
        return True
    limit = datetime.fromisoformat(since).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return line[:19].decode() >= limit


def shown(line: bytes, stamped: bool) -> bytes:
    return line if stamped else line.partition(b" ")[2]
