"""What a test starts in an image, with what a pod mounts."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.images.image import ROOT, Image
from tests.images.sandbox import Mount

Run = Callable[..., "subprocess.CompletedProcess[str]"]
CHECKS = ROOT / "tests/images/checks.py"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a command in an image to its end, with a /tmp of its own."""

    def run(image: Image, *command: str, **mounts: Path) -> "subprocess.CompletedProcess[str]":
        scratch = tmp_path / "tmp"
        scratch.mkdir(exist_ok=True)
        scratch.chmod(0o777)
        seen = {f"/{name}": Mount(source=path) for name, path in mounts.items()}
        seen["/tmp"] = Mount(source=scratch)
        seen["/checks.py"] = Mount(source=CHECKS, writable=False)
        return subprocess.run(
            image.command(command, mounts=seen),
            env=image.environment,
            capture_output=True,
            text=True,
            timeout=900,
        )

    return run
