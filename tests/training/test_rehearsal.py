"""`finetune verify RUN --resume`: does it prove that resuming is exact, and find that it is not?"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.training.forking import log_of, run_forked, run_step
from tests.training.volume import make_config, make_volume
from trainer.checkpoints.tensors import write_tensors
from trainer.contract.checkpoints import name_of
from trainer.contract.sealed_folder import seal
from trainer.training import verify_resume as rehearsal
from trainer.training.verify_resume import main

RUN = "run"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A done run of two processes with dropout; its last checkpoints are of steps 8 and 12."""
    home = tmp_path_factory.mktemp("home")
    volume = make_volume(home / "finetune-data", dropout=0.2)
    (volume / "prompts.txt").write_text("w3 w4\n", encoding="utf-8")
    changes = {"processes": 2, "gradients": 1, "zero_stage": 2, "prompt_file": "prompts.txt"}
    sampling = {"prompt_tokens": 4, "prompt_samples": 1}
    config = make_config(volume, sampling=sampling, **changes)
    assert run_step("finetune", config) == 0, log_of(config)[-3000:]
    return home


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_nlink) for p in files}


def left_behind(volume: Path) -> list[Path]:
    return list((volume / "cache").glob("*"))


def test_a_run_of_two_processes_is_proven_and_left_alone(home: Path) -> None:
    volume = home / "finetune-data"
    before = contents(volume)

    def killed_halfway() -> int:
        rehearsal.train_again = lambda *job: os.kill(os.getpid(), signal.SIGKILL)
        return main([str(volume), RUN])

    assert run_forked(volume, killed_halfway)[0] == -signal.SIGKILL
    assert left_behind(volume)  # the next one clears it away
    code, said = run_forked(volume, lambda: main([str(volume), RUN]))
    assert code == 0, said
    assert "run resumes exactly: from step 8 to step 12" in said
    assert contents(volume) == before
    assert not left_behind(volume)


def with_other_numbers(volume: Path, name: str, change: Any, step: int = 12) -> None:
    """Alter a tensor of the last checkpoint, and seal it again as if it had been written so."""
    place = volume / RUN / "checkpoints" / name_of(step)
    about = json.loads((place / "manifest.json").read_text())
    for key in ("format", "files", "manifest_sha256"):
        del about[key]
    part = place.with_name(".part")
    place.rename(part)
    (part / "manifest.json").unlink()
    for path in part.glob("*.safetensors"):
        arrays = load_file(path)
        path.unlink()
        write_tensors(path, {k: change(v) if name in k else v for k, v in arrays.items()})
    seal(part, place, about)


def last_bit(numbers: np.ndarray) -> np.ndarray:
    return (numbers.view(np.uint32) ^ 1).view(np.float32)


@pytest.fixture
def copy(home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(home / "finetune-data", tmp_path / "finetune-data"))


def test_one_bit_and_one_loss_that_came_out_otherwise_are_named(copy: Path) -> None:
    with_other_numbers(copy, "exp_avg/transformer.h.0.mlp.fc_in.weight", last_bit)
    metrics = copy / RUN / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    at = next(n for n, line in enumerate(lines) if json.loads(line)["step"] == 10)
    digit = lines[at].index('"loss": ') + 10
    lines[at] = lines[at][:digit] + str(9 - int(lines[at][digit])) + lines[at][digit + 1 :]
    metrics.write_text("".join(lines))
    code, said = run_forked(copy, lambda: main([str(copy), RUN]))
    assert code == 1, said
    assert "exp_avg differs in 1 tensors (first transformer.h.0.mlp.fc_in.weight)" in said
    assert "metrics.jsonl has other lines from step 10 on" in said
    assert "weight differs" not in said
    assert not left_behind(copy)


def test_what_cannot_be_compared_is_refused_and_says_why(copy: Path) -> None:
    place = copy / RUN / "checkpoints" / name_of(8)
    with open(next(place.glob("*.safetensors")), "r+b") as file:
        file.write(b"\xff")
    code, said = run_forked(copy, lambda: main([str(copy), RUN]))
    assert code == 78 and "a damaged checkpoint among its last two: step-00000008/" in said
    shutil.rmtree(place)
    code, said = run_forked(copy, lambda: main([str(copy), RUN]))
    assert code == 78 and "too few checkpoints to compare (got 1)" in said
    code, said = run_forked(copy, lambda: main([str(copy), "nobody"]))
    assert code == 78 and "RUN is not a run" in said
    assert not left_behind(copy)


def test_ctrl_c_ends_the_command_and_leaves_nothing_behind(home: Path) -> None:
    command = [sys.executable, "-m", "flows.cli", "verify", RUN, "--resume", "--home", str(home)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while "trains run again" not in (line := process.stdout.readline()):
        assert line, process.communicate()
    os.kill(process.pid, signal.SIGINT)
    assert process.wait(timeout=240) == 75
    assert not left_behind(home / "finetune-data")
