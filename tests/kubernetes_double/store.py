"""Objects by kind and name, a resource version for each change, and its history.

Runs in one event loop: nothing here awaits, so every method is atomic.
"""

import asyncio
import copy
import itertools
import random
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from typing import Any

Object = dict[str, Any]
# "jobs", "pods", ... and the API version and kind that objects of it carry.
KINDS = {
    "jobs": ("batch/v1", "Job"),
    "pods": ("v1", "Pod"),
    "events": ("v1", "Event"),
    "services": ("v1", "Service"),
    "configmaps": ("v1", "ConfigMap"),
    "secrets": ("v1", "Secret"),
    "persistentvolumeclaims": ("v1", "PersistentVolumeClaim"),
    "serviceaccounts": ("v1", "ServiceAccount"),
    "namespaces": ("v1", "Namespace"),
    "nodes": ("v1", "Node"),
    "deployments": ("apps/v1", "Deployment"),
    "inferenceservices": ("serving.kserve.io/v1beta1", "InferenceService"),
}
HISTORY = 10_000
SUFFIX_LETTERS = "bcdfghjklmnpqrstvwxz2456789"  # of Kubernetes' generated names


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Store:
    """Everything the cluster knows."""

    def __init__(self) -> None:
        self._objects: dict[str, dict[tuple[str, str], Object]] = {kind: {} for kind in KINDS}
        self._revisions = itertools.count(500)
        self.revision = 500
        self.oldest_revision = 0  # a watch from before it is answered 410
        self.history: deque[tuple[int, str, str, Object]] = deque(maxlen=HISTORY)
        self._changed: asyncio.Event = asyncio.Event()
        self._listeners: list[Callable[[str, str, Object], None]] = []

    def listen(self, listener: Callable[[str, str, Object], None]) -> None:
        """Have `listener(type, kind, object)` called after each change."""
        self._listeners.append(listener)

    def change(self) -> Awaitable[object]:
        """Something to await: done at the first change from now on."""
        return self._changed.wait()

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """A copy of the object, or None."""
        return copy.deepcopy(self._objects[kind].get((namespace, name)))

    def list(self, kind: str, namespace: str = "") -> list[Object]:
        """Copies of all objects of a kind, of one namespace or of all, in order of creation."""
        return [
            copy.deepcopy(found)
            for (place, _), found in self._objects[kind].items()
            if namespace in ("", place)
        ]

    def create(self, kind: str, namespace: str, given: Object) -> Object:
        """Store a new object; its name must be free."""
        made = copy.deepcopy(given)
        metadata = made.setdefault("metadata", {})
        metadata |= {
            "namespace": namespace,
            "uid": metadata.get("uid") or str(uuid.uuid4()),
            "creationTimestamp": now(),
        }
        if kind in ("jobs", "pods", "deployments", "inferenceservices"):
            metadata["generation"] = 1
        made["apiVersion"], made["kind"] = KINDS[kind]
        key = (namespace, metadata["name"])
        assert key not in self._objects[kind]
        self._objects[kind][key] = made
        self._record("ADDED", kind, made)
        return copy.deepcopy(made)

    def update(self, kind: str, changed: Object) -> Object:
        """Replace an object; without a difference nothing happens. Removed ones stay removed."""
        key = _key(changed)
        before = self._objects[kind].get(key)
        if before is None or before["metadata"]["uid"] != changed["metadata"]["uid"]:
            return changed
        candidate = copy.deepcopy(changed)
        candidate["metadata"]["resourceVersion"] = before["metadata"]["resourceVersion"]
        if candidate == before:
            return candidate
        self._objects[kind][key] = candidate
        self._record("MODIFIED", kind, candidate)
        return copy.deepcopy(candidate)

    def remove(self, kind: str, gone: Object) -> None:
        """Take an object out; what it owned is the garbage collector's business."""
        there = self._objects[kind].get(_key(gone))
        if there is not None and there["metadata"]["uid"] == gone["metadata"]["uid"]:
            self._record("DELETED", kind, self._objects[kind].pop(_key(gone)))

    def owned(self, owner: Object) -> Iterator[tuple[str, Object]]:
        """What names `owner` as its owner."""
        for kind, objects in self._objects.items():
            for found in list(objects.values()):
                references = found["metadata"].get("ownerReferences", [])
                if any(r["uid"] == owner["metadata"]["uid"] for r in references):
                    yield kind, copy.deepcopy(found)

    def forget_history(self) -> None:
        """As when etcd compacts: every older resource version is gone."""
        self.oldest_revision = self.revision

    def _record(self, change: str, kind: str, obj: Object) -> None:
        self.revision = next(self._revisions)
        obj["metadata"]["resourceVersion"] = str(self.revision)
        self.history.append((self.revision, change, kind, copy.deepcopy(obj)))
        self._changed.set()
        self._changed = asyncio.Event()
        for listener in self._listeners:
            listener(change, kind, copy.deepcopy(obj))


def generated_suffix() -> str:
    return "".join(random.choices(SUFFIX_LETTERS, k=5))


def _key(obj: Object) -> tuple[str, str]:
    return obj["metadata"]["namespace"], obj["metadata"]["name"]
