"""Deleting: graceful for Pods, by propagation policy for owners, held up by finalizers."""

import asyncio

from tests.kubernetes_double.store import Object, Store, now

FOREGROUND = "foregroundDeletion"
COLLECT_SECONDS = 1.0  # until what lost its owner is collected (real: seconds)


def delete(store: Store, kind: str, obj: Object, policy: str, grace_seconds: int | None) -> Object:
    """Begin the deletion of `obj`; return it as it is then."""
    metadata = obj["metadata"]
    if kind == "pods":
        return delete_pod(store, obj, grace_seconds)
    if policy == "Foreground":
        if "deletionTimestamp" not in metadata:
            metadata["deletionTimestamp"] = now()
            metadata["finalizers"] = [*metadata.get("finalizers", []), FOREGROUND]
            obj = store.update(kind, obj)
        collect(store, kind, obj)
        return obj
    store.remove(kind, obj)
    for owned_kind, owned in store.owned(obj):
        if policy != "Orphan":
            delete(store, owned_kind, owned, "Background", None)
    return obj


def delete_pod(store: Store, pod: Object, grace_seconds: int | None) -> Object:
    """Give the Pod its grace period; one that no node has is gone at once."""
    metadata, spec = pod["metadata"], pod["spec"]
    if "deletionTimestamp" not in metadata:
        grace = spec.get("terminationGracePeriodSeconds", 30)
        metadata["deletionTimestamp"] = now()
        metadata["deletionGracePeriodSeconds"] = grace if grace_seconds is None else grace_seconds
        metadata["generation"] += 1
        pod = store.update("pods", pod)
    if "nodeName" not in spec or grace_seconds == 0:
        remove_when_free(store, pod)
    return pod


def remove_when_free(store: Store, pod: Object) -> bool:
    """Remove a terminating Pod unless a finalizer holds it."""
    if pod["metadata"].get("finalizers"):
        return False
    pod["metadata"]["deletionGracePeriodSeconds"] = 0
    store.remove("pods", store.update("pods", pod))
    return True


def collect(store: Store, kind: str, owner: Object) -> None:
    """Go on with a foreground deletion: what blocks it first, then the owner, then the rest.

    Source: processDeletingDependentsItem of Kubernetes' garbage collector, which waits for
    dependents with blockOwnerDeletion alone.
    """
    for owned_kind, found in _blocking(store, owner):
        if "deletionTimestamp" not in found["metadata"]:
            delete(store, owned_kind, found, "Background", None)
    if not _blocking(store, owner):
        store.remove(kind, owner)
        loop = asyncio.get_running_loop()
        for owned_kind, found in store.owned(owner):
            loop.call_later(COLLECT_SECONDS, store.remove, owned_kind, found)


def _blocking(store: Store, owner: Object) -> list[tuple[str, Object]]:
    uid = owner["metadata"]["uid"]
    return [
        (kind, found)
        for kind, found in store.owned(owner)
        if any(
            reference["uid"] == uid and reference.get("blockOwnerDeletion")
            for reference in found["metadata"]["ownerReferences"]
        )
    ]
