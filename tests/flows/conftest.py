from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flows.small_volume import make_volume
from tests.prefect_processes import prefect_environment, prefect_server


# Of this package alone: an idle server would continue looking for work beside all later tests.
@pytest.fixture(scope="package")
def prefect_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prefect")


@pytest.fixture(scope="package")
def api_url(prefect_folder: Path) -> Iterator[str]:
    with prefect_server(prefect_folder) as url:
        yield url


@pytest.fixture(scope="package")
def environment(prefect_folder: Path, api_url: str) -> dict[str, str]:
    """In which commands use the test's own server."""
    return prefect_environment(prefect_folder, api_url)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose volume has a dataset and a model; a reader's clone, for `prefect deploy`."""
    folder = tmp_path_factory.mktemp("home")
    make_volume(folder)
    for name in ("prefect.yaml", "infra"):
        (folder / name).symlink_to(Path(__file__).parents[2] / name)
    return folder
