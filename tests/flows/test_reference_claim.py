"""A claim as the reference's workflow leaves it: found, served, and its tokens trained on."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from flows.cli.runs.overview import list_runs
from tests.flows.small_volume import PVC, finetune
from tests.flows.test_pipeline import REQUEST

RUN = "western"


@pytest.fixture(scope="module")
def claim(home: Path) -> Path:
    """With a finished run, its weights pickled as then, and one that has checkpoints only."""
    volume = home / PVC
    final = volume / f"finetunes/results-{RUN}/final"
    shutil.copytree(volume / "models/tiny", final)
    model = AutoModelForCausalLM.from_pretrained(final)
    torch.save(model.state_dict(), final / "pytorch_model.bin")
    (final / "model.safetensors").unlink()
    for step in (500, 1000):
        (volume / f"finetunes/results-other/checkpoint-{step}").mkdir(parents=True)
    return volume


def said(process: subprocess.Popen[str], code: int = 0) -> str:
    out, err = process.communicate(timeout=1000)
    assert process.returncode == code, out + err
    return out + err


def test_its_runs_are_listed_and_its_models_deploy(
    home: Path, claim: Path, environment: dict[str, str]
) -> None:
    def state(name: str) -> str:
        rows = json.loads(said(finetune(home, environment, "runs", "--json")))
        (row,) = [row for row in rows if row["name"] == name]
        return row["state"]

    assert f"finetune adopt {RUN}" in state(RUN)
    assert "checkpoint-1000" in state("other")
    before = {path: path.stat().st_mtime_ns for path in claim.glob("finetunes/**/*")}
    said(finetune(home, environment, "adopt", RUN))
    assert state(RUN) == "adopted"
    deploy = ["-p", f"run_name={RUN}", "-p", "inference_only=true"]
    answer = said(finetune(home, environment, "run", *deploy))
    try:
        assert "serves at" in answer
        assert state(RUN) == "served"
    finally:
        said(finetune(home, environment, "stop", RUN))
    assert {path: path.stat().st_mtime_ns for path in claim.glob("finetunes/**/*")} == before


def test_a_run_without_a_final_model_is_refused(
    home: Path, claim: Path, environment: dict[str, str]
) -> None:
    assert "other" in said(finetune(home, environment, "adopt", "other"), code=78)
    assert not (claim / "other").exists()


def test_its_token_file_makes_the_store_of_the_text(
    home: Path, claim: Path, environment: dict[str, str]
) -> None:
    def store(*dataset: str) -> Path:
        asked = ["-p", "model=models/tiny", "-p", f"context={REQUEST['context']}", *dataset]
        process = finetune(home, environment, "tokenize", *asked)
        out, err = process.communicate(timeout=1000)
        assert process.returncode == 0, err
        return Path(out.splitlines()[-1])

    name = f"dataset-models_tiny-{REQUEST['context']}-b-1-edd9879.tokens"
    shutil.copy(store() / "tokens.bin", claim / name)
    (listed,) = [row for row in list_runs(home, PVC) if row.name == name]
    assert f"-p dataset={name}" in listed.state
    assert (store("-p", f"dataset={name}") / "tokens.bin").read_bytes() == (
        claim / name
    ).read_bytes()
