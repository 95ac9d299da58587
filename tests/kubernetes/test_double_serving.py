"""The double's controllers of services: what goes while they look at another stays gone."""

import asyncio
from pathlib import Path
from typing import Any

import aiohttp

from infra.kubernetes_backend import manifests_serving
from tests.kubernetes.test_serving_manifests import SPEC
from tests.kubernetes_double.deletion import delete
from tests.kubernetes_double.events import Events
from tests.kubernetes_double.kubelet import Kubelet, Node
from tests.kubernetes_double.serving import ServingControllers
from tests.kubernetes_double.store import Store
from trainer.contract.cluster_settings import ClusterSettings


def test_a_deployment_deleted_while_another_is_looked_at_gets_no_pod(tmp_path: Path) -> None:
    store = Store()
    made = manifests_serving.deployment(SPEC, ClusterSettings())

    class Deleting(ServingControllers):
        async def _is_ready(self, pod: Any, session: aiohttp.ClientSession) -> bool:
            if going := store.get("deployments", "default", "going"):
                delete(store, "deployments", going, "Background", None)
            return False

    async def look() -> list[str]:
        node = Node()
        controllers = Deleting(store, Kubelet(store, Events(store), node, tmp_path, {}), node)
        for name in ("staying", "going"):
            metadata = {**made["metadata"], "name": name}
            store.create("deployments", "default", {**made, "metadata": metadata})
        await controllers.look(None)  # type: ignore[arg-type]
        return [pod["metadata"]["ownerReferences"][0]["name"] for pod in store.list("pods")]

    assert asyncio.run(look()) == ["staying"]
