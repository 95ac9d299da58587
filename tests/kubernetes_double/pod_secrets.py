"""Secrets whose keys become a container's environment, as the kubelet reads them."""

import base64

from tests.kubernetes_double.store import Object, Store


def missing_secret(store: Store, pod: Object) -> str:
    """The kubelet's words where a Secret of the Pod is not there; empty: all are."""
    for name in _names(pod):
        if store.get("secrets", pod["metadata"]["namespace"], name) is None:
            return f'secret "{name}" not found'
    return ""


def variables_of(store: Store, pod: Object) -> dict[str, str]:
    """Every key of the Pod's Secrets, with its value."""
    found: dict[str, str] = {}
    for name in _names(pod):
        secret = store.get("secrets", pod["metadata"]["namespace"], name) or {}
        found |= {k: base64.b64decode(v).decode() for k, v in secret.get("data", {}).items()}
    return found


def _names(pod: Object) -> list[str]:
    sources = pod["spec"]["containers"][0].get("envFrom", [])
    return [source["secretRef"]["name"] for source in sources if "secretRef" in source]
