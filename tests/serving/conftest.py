from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from infra.local import service as local_service
from infra.local.service import Service
from tests.serving import tiny_models


@pytest.fixture(scope="session")
def volume(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume with the GPT-J of the run `tales`."""
    root = tmp_path_factory.mktemp("volume")
    tiny_models.save(root / "tales" / "final", chat_template=tiny_models.CHAT_TEMPLATE)
    return root


@pytest.fixture(scope="session")
def service(volume: Path) -> Iterator[Service]:
    """A server process for all tests that leave it as it was."""
    started = local_service.start(volume, "tales", "tales/final", timeout_seconds=240)
    yield started
    local_service.stop(volume, "tales")


@pytest.fixture(scope="session")
def client(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=240, trust_env=False) as http:
        yield http
