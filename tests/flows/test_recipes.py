"""Each page of docs/recipes: its own files and parameters train a small model, through a kill.

The steps run as forks, one after another as the flow starts them; test_pipeline.py has the flow.
"""

import json
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from flows.cli.main import cli
from flows.cli.options import given_parameters
from tasks import configs
from tests import readme
from tests.demo.test_demo import demo
from tests.flows.small_volume import PVC
from tests.training.forking import Strike, ended_with, log_of, run_step
from trainer.contract.parameters import Parameters
from trainer.contract.validation import load_parameters

RECIPES = readme.ROOT / "docs/recipes"
ENGINE = "trainer.training.engine.engine"
TALES = 30
# A few steps, with a checkpoint before the one that is cut off.
SMALL = {"schedule.max_steps": "6", "save_steps": "2", "batch_size": "2", "gradients": "1"}


def blocks(page: str, language: str) -> list[tuple[str, str]]:
    """The page's blocks of that language, each with the file that the sentence before it names."""
    text = (RECIPES / f"{page}.md").read_text(encoding="utf-8")
    found = re.finditer(rf"\n```{language}\n(.*?)\n```", text, re.DOTALL)
    named = [(text[: block.start()], block[1]) for block in found]
    return [
        ((re.findall(r"`([\w/.-]+\.\w+)`", before) or [""])[-1], body) for before, body in named
    ]


def first_run(page: str) -> list[str]:
    """The words behind `finetune run` where the page runs it first."""
    text = (RECIPES / f"{page}.md").read_text(encoding="utf-8").replace("\\\n", " ")
    found = re.search(r"^`?finetune run ([^`\n]*)", text, re.MULTILINE)
    assert found is not None
    return shlex.split(found[1])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the recipes begin with: the demo's volume, of its text some tales, and their files."""
    home = tmp_path_factory.mktemp("recipes")
    assert demo(home / PVC).returncode == 0
    texts = [path for path in sorted((home / PVC / "dataset").rglob("*")) if path.is_file()]
    tales = [path for path in texts if path.suffix == ".txt"][:TALES]
    for path in texts:
        if path not in tales:
            path.unlink()
    for page in sorted(path.stem for path in RECIPES.glob("*.md")):
        for name, body in [*blocks(page, "yaml"), *blocks(page, "jinja")]:
            (home / name).write_text(f"{body}\n", encoding="utf-8")
        for _, body in blocks(page, "python"):
            if "finetune-data" in body and "peft" not in body:
                subprocess.run([sys.executable, "-c", body], cwd=home, check=True)
    imported = CliRunner().invoke(cli, ["import-argo", str(home / "request.yaml")])
    (home / "novels.yaml").write_text(imported.stdout, encoding="utf-8")
    return home


def parameters_of(home: Path, page: str, **changed: str) -> Parameters:
    words = first_run(page)
    files = [home / words[i + 1] for i, word in enumerate(words) if word == "--params"]
    given = [words[i + 1] for i, word in enumerate(words) if word == "-p"]
    given += [f"{name}={value}" for name, value in changed.items()]
    return load_parameters(Parameters, given_parameters(given, files[0] if files else None))


class Steps:
    """The steps of one run, each as a fork."""

    def __init__(self, home: Path, parameters: Parameters) -> None:
        self.volume, self.parameters = home / PVC, parameters

    def config(self, step: str, **known: Any) -> dict[str, Any]:
        values = self.parameters.model_dump()
        asked = [self.parameters.request] if step in ("fetch", "finetune") else []
        made = getattr(configs, f"{step}_config")(values, *asked, **known)
        return {**made, "volume": str(self.volume)}

    def did(self, step: str, **known: Any) -> dict[str, Any]:
        config = self.config(step, **known)
        assert run_step(step, config) == 0, log_of(config, step)[-3000:]
        return ended_with(config, step)["result"]

    def prepare(self) -> None:
        fetched = self.did("fetch")
        self.places = {name: fetched[name] for name in ("model", "tokenizer")}
        self.tokens = self.did("tokenize", **self.places)["store"]

    def training(self) -> dict[str, Any]:
        known = {**self.places, "tokens": self.tokens, "attempt": "", "earlier_outcomes": []}
        return self.config("finetune", **known)

    def evaluate(self) -> dict[str, Any]:
        self.did("evaluate", model=self.places["model"], tokens=self.tokens)
        return json.loads((self.run / "evaluation.json").read_text())

    @property
    def run(self) -> Path:
        return self.volume / self.parameters.run_name


@pytest.mark.parametrize("page", ["novels", "chat", "lora", "qlora", "nightly", "preference"])
def test_a_killed_run_of_the_recipe_has_the_unbroken_ones_weights(home: Path, page: str) -> None:
    broken = Steps(home, parameters_of(home, page, **SMALL))
    broken.prepare()
    config = broken.training()
    saved = broken.run / "checkpoints/step-00000002"
    strike = Strike(f"{ENGINE}:Engine.step", 4, sealed=saved)
    assert run_step("finetune", config, strike) == -signal.SIGKILL, log_of(config)[-3000:]
    assert run_step("finetune", config) == 0, log_of(config)[-3000:]
    assert "resumes from step 2 of 6" in log_of(config)
    whole = Steps(home, parameters_of(home, page, **SMALL, run_name=f"whole-{page}"))
    whole.places, whole.tokens = broken.places, broken.tokens
    assert run_step("finetune", whole.training()) == 0
    made = [
        {path.name: path.read_bytes() for path in sorted(steps.run.glob("final/**/*.safetensors"))}
        for steps in (broken, whole)
    ]
    assert made[0] == made[1] and made[0]
    report = broken.evaluate()
    assert report["loss"] < report["base_loss"]


def test_every_request_of_a_recipe_is_one_file_of_parameters() -> None:
    for page in ("chat", "qlora", "nightly"):
        ((name, body),) = blocks(page, "yaml")
        assert f"--params {name}" in " ".join(first_run(page))
        load_parameters(Parameters, yaml.safe_load(body))
