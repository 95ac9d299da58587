"""Files of the user's folder with our packages' names are never run instead of ours."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.flows.small_volume import make_volume
from trainer.contract import warm

ROOT = Path(__file__).parents[1]
OURS = ("flows", "tasks", "infra", "trainer")
STARTS_A_MODULE = re.compile(r'(?<!"-P", )"-m"')


@pytest.mark.parametrize("parent", ["warm", "off"])
def test_a_command_in_a_folder_with_such_files_runs_ours(tmp_path: Path, parent: str) -> None:
    make_volume(tmp_path)
    for name in (*OURS, "prefect", "torch"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the file of the user was run')\n")
    finetune = shutil.which("finetune", path=str(Path(sys.executable).parent))
    assert finetune, "the console script is installed"
    told = [finetune, "tokenize", "-p", "dataset=dataset", "-p", "model=models/tiny"]
    environment = {name: v for name, v in os.environ.items() if name != warm.VARIABLE}
    if parent == "off":
        environment[warm.VARIABLE] = warm.OFF
    done = subprocess.run(
        [*told, "-p", "context=64"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (Path(done.stdout.splitlines()[-1]) / "manifest.json").exists()


def test_every_child_is_started_without_the_current_folder_on_its_path() -> None:
    """`python -m` puts it first. A container's folder is the image's own."""
    wrong = {
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for package in OURS
        for path in (ROOT / package).rglob("*.py")
        if not path.name.startswith("manifests_")
        for before, line in zip(
            ["", *path.read_text().splitlines()], path.read_text().splitlines(), strict=False
        )
        if STARTS_A_MODULE.search(line) and before.strip() != '"-P",'
    }
    assert not wrong
