"""A finished run with adapters and an evaluation, and the command that exports it."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.evaluation.test_evaluate import evaluate_config
from tests.training.forking import log_of, run_step
from tests.training.volume import make_config, make_volume

PVC = "finetune-data"


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose volume has the LoRA run `run`."""
    home = tmp_path_factory.mktemp("trained")
    volume = make_volume(home / PVC, "llama")
    request = {"run_name": "run", "epochs": 1, "model": "models/tiny", "tokens": "tokens/tiny"}
    config = make_config(volume, epochs=1, request=request, lora={"rank": 4, "alpha": 8.0})
    assert run_step("finetune", config) == 0, log_of(config)
    evaluate = evaluate_config(volume)
    assert run_step("evaluate", evaluate) == 0, log_of(evaluate, "evaluate")
    return home


@dataclass
class Export:
    """`finetune export` on a home of this test's own."""

    home: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def volume(self) -> Path:
        return self.home / PVC

    def run(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Export the run; what it printed, after its exit code was compared."""
        known = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", "export", *arguments, "--home", str(self.home)],
            env={**known, "HF_HOME": str(self.home / "hf"), **self.environment},
            capture_output=True,
            text=True,
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done


@pytest.fixture
def export(tmp_path: Path, trained: Path) -> Export:
    shutil.copytree(trained, tmp_path / "home", symlinks=True)
    return Export(tmp_path / "home")
