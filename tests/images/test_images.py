"""The images as their Dockerfiles make them: as another user, from a read-only root."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.images.all_steps import run_all_steps
from tests.images.conftest import Run
from tests.images.image import NAMES, ROOT, image_of
from tests.images.sandbox import Mount

ALTERED = (
    ".dockerignore",
    "pyproject.toml",
    "requirements.lock",
    "prefect.yaml",
    "flows",
    "tasks",
    "infra",
    "trainer",
)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_holds_what_its_code_needs_and_nothing_else(name: str, run: Run) -> None:
    done = run(image_of(name), "python", "/checks.py", name)
    assert done.stdout == f"{name}: no fault\n", done.stderr
    assert done.returncode == 0


@pytest.fixture
def altered(tmp_path: Path) -> Callable[[str, str, str], Path]:
    """A copy of what the images are built from, with a text of a file replaced."""

    def alter(path: str, old: str, new: str) -> Path:
        project = tmp_path / "project"
        project.mkdir()
        for part in ALTERED:
            source = ROOT / part
            if source.is_dir():
                shutil.copytree(source, project / part)
            else:
                shutil.copy(source, project / part)
        text = (project / path).read_text()
        assert old in text
        (project / path).write_text(text.replace(old, new))
        return project

    return alter


def test_a_package_that_is_not_declared_is_missed(
    altered: Callable[[str, str, str], Path], run: Run
) -> None:
    project = altered("pyproject.toml", '  "xxhash>=4.1",', "")
    done = run(image_of("orchestrator", project), "python", "-m", "flows.cli", "--help")
    assert done.returncode == 1
    assert "No module named 'xxhash'" in done.stderr


def test_code_without_the_projects_metadata_is_missed(
    altered: Callable[[str, str, str], Path], run: Run
) -> None:
    path, project = "infra/images/orchestrator.Dockerfile", '"/build[orchestrator,kubernetes]"'
    image = image_of("orchestrator", altered(path, project, "xxhash"))
    code = "import importlib.metadata as m; m.version('finetune-pipeline')"
    done = run(image, "python", "-c", code)
    assert (
        "PackageNotFoundError: No package metadata was found for finetune-pipeline" in done.stderr
    )


def test_a_folder_that_is_left_out_of_the_build_is_named(
    altered: Callable[[str, str, str], Path],
) -> None:
    project = altered(".dockerignore", "!tasks\n", "")
    with pytest.raises(ValueError, match=r"COPY tasks: .*\.dockerignore leaves it out"):
        image_of("orchestrator", project)


def test_the_root_is_read_only_and_the_user_is_not_root(run: Run) -> None:
    image = image_of("steps")
    code = "import os; print(os.getuid()); open('/tmp/x', 'w'); open('/app/x', 'w')"
    done = run(image, "python", "-c", code)
    assert done.stdout == "1000\n"
    assert "Read-only file system: '/app/x'" in done.stderr


def test_every_step_runs_to_its_end_in_the_image_of_the_steps(tmp_path: Path) -> None:
    image = image_of("steps")

    def start(
        name: str, command: list[str], mounts: dict[str, Mount]
    ) -> tuple[list[str], dict[str, str]]:
        return image.command(command, mounts=mounts), dict(image.environment)

    done = [line.partition(":")[0] for line in run_all_steps(start, tmp_path)]
    steps = ["plan", "fetch", "tokenize", "finetune", "evaluate", "champion", "serve and deploy"]
    assert done == steps
