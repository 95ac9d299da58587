"""Prefect's server as infra/cluster starts it: in its image, from a read-only root."""

import asyncio
import copy
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from tests.images.image import shipped_images
from tests.kubernetes.shipped import MANIFESTS
from tests.kubernetes_double.container import Container

READY_SECONDS = 500


def server_pod() -> dict[str, Any]:
    """The pod of the Deployment."""
    [found] = [
        made
        for made in MANIFESTS
        if made["kind"] == "Deployment" and made["metadata"]["name"] == "prefect-server"
    ]
    return copy.deepcopy(found["spec"]["template"])


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the server."""
    folder, pod = tmp_path_factory.mktemp("server"), server_pod()
    container = Container(pod, folder / "pod", {"prefect-server": folder / "data"})
    container.mount()
    image = shipped_images()[pod["spec"]["containers"][0]["image"]]

    async def live() -> None:
        await container.start({}, image)
        started.set()
        await container.ended()

    started = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(live()))
    thread.start()
    started.wait()
    try:
        url = f"http://127.0.0.1:{container.port}"
        deadline = time.monotonic() + READY_SECONDS
        while not is_ready(f"{url}/api/health"):
            assert thread.is_alive() and time.monotonic() < deadline, container.log.read_text()
            time.sleep(0.3)
        yield url
    finally:
        container.kill()
        thread.join()


def is_ready(url: str) -> bool:
    try:
        return urllib.request.urlopen(url, timeout=30).status == 200
    except OSError:
        return False


@pytest.mark.parametrize("page", ["/", "/v2"])
def test_the_page_and_its_scripts_are_served(address: str, page: str) -> None:
    with urllib.request.urlopen(f"{address}{page}", timeout=60) as response:
        assert response.headers["Content-Type"].startswith("text/html")
        html = response.read().decode()
    scripts = re.findall(r'<script[^>]+src="([^"]+\.js)"', html)
    assert scripts
    for script in scripts:
        with urllib.request.urlopen(f"{address}{script}", timeout=60) as response:
            assert "javascript" in response.headers["Content-Type"]
            assert len(response.read()) > 1000


def test_a_page_that_does_not_exist_is_not_taken_for_one(address: str) -> None:
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(f"{address}/assets/nothing.js", timeout=60)
