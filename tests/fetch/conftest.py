"""A small volume, and the fetch step as the process that it is."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from tests.hub_double import HubDouble, HubModel

VOCABULARY, WIDTH, POSITIONS = 64, 8, 32
# Files of a model on the hub that are not downloaded, and those beside the model that are.
UNWANTED = {
    "pytorch_model.bin": b"pickle",
    "flax_model.msgpack": b"flax",
    "onnx/model.onnx": b"onnx",
    "modeling.py": b"raise SystemExit('ran code')",
    ".gitattributes": b"*",
    "images/logo.json": b"{}",
    "pytorch_model.bin.index.json": b"{}",
}
KEPT = {"README.md": b"# Tiny\n", "LICENSE": b"Free."}


def model_files(num_tokens: int = VOCABULARY, head_width: int = 500) -> dict[str, bytes]:
    """The files of a GPT-J-like model, no bigger than its checks need.

    The weights take about 256 bytes for each of `head_width`.
    """
    config = {
        "model_type": "gptj",
        "architectures": ["GPTJForCausalLM"],
        "vocab_size": VOCABULARY,
        "n_positions": POSITIONS,
        "n_embd": WIDTH,
    }
    weights = {
        "transformer.wte.weight": np.ones((VOCABULARY, WIDTH), np.float32),
        "transformer.h.0.attn.masked_bias": np.zeros((), np.bool_),
        "lm_head.weight": np.ones((VOCABULARY, head_width), np.float32),
    }
    return {
        "config.json": json.dumps(config).encode(),
        "tokenizer.json": json.dumps(tokenizer(num_tokens)).encode(),
        "tokenizer_config.json": b"{}",
        "model.safetensors": save(weights),
    }


def tokenizer(num_tokens: int) -> dict[str, Any]:
    names = [*ascii_lowercase, *(f"t{number}" for number in range(num_tokens))]
    vocabulary = {name: number for number, name in enumerate(names[: num_tokens - 1])}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [{"id": num_tokens - 1, "content": "<|endoftext|>", "special": True, **flags}]
    return {
        "version": "1.0",
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
        "added_tokens": added,
    }


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@dataclass
class Ended:
    """How the step ended."""

    exit_code: int
    output: str
    errors: str
    outcome: dict[str, Any]


@dataclass
class Step:
    """The fetch step on a volume, `python -m trainer fetch` with a config of ours; or `plan`."""

    folder: Path
    volume: Path
    environment: dict[str, str] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()
    name: str = "fetch"

    def start(self, **config: Any) -> subprocess.Popen[str]:
        path = self.folder / f"config-{len(list(self.folder.iterdir()))}.json"
        full = {"volume": str(self.volume), "run_name": "run", "model": "models/tiny"}
        full |= {"dataset": "dataset", "context": 16}
        path.write_text(json.dumps(full | config))
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
        environment |= {
            "FINETUNE_TERMINATION_PATH": f"{path}.outcome",
            "HF_HOME": str(self.folder / "hf"),
            # Else a stream that the hub holds is given up after 10 seconds, and asked for again.
            "HF_HUB_DOWNLOAD_TIMEOUT": "600",
            **self.environment,
        }
        process = subprocess.Popen(
            [*self.prefix, sys.executable, "-m", "trainer", self.name, str(path)],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        process.args = f"{path}.outcome"  # type: ignore[assignment]
        return process

    def end(self, process: subprocess.Popen[str]) -> Ended:
        output, errors = process.communicate(timeout=280)
        outcome = Path(str(process.args))
        read = json.loads(outcome.read_text()) if outcome.exists() else {}
        return Ended(process.returncode, output, errors, read)

    def run(self, **config: Any) -> Ended:
        return self.end(self.start(**config))

    def refused(self, **config: Any) -> str:
        """Run it, hold it to what a refusal is, and return the message."""
        ended = self.run(**config)
        assert ended.exit_code == 78, (ended.output, ended.errors)
        assert ended.outcome["status"] == "refused"
        assert ended.outcome["message"] in ended.errors
        assert "Traceback" not in ended.errors
        name = config.get("run_name", "run")
        assert not (self.volume / name / "run.json").exists()
        assert not (self.volume / name / "outcomes").exists()
        return ended.errors


@pytest.fixture
def step(tmp_path: Path) -> Step:
    """The step on a volume with a dataset and a model, both good."""
    volume = tmp_path / "volume"
    write(volume / "dataset", {"a.txt": b"Once.\n"})
    write(volume / "models/tiny", model_files())
    configs = tmp_path / "configs"
    configs.mkdir()
    return Step(configs, volume)


@pytest.fixture
def edit_config(step: Step) -> Callable[..., None]:
    """Change the model's config.json."""

    def edit(**changes: Any) -> None:
        path = step.volume / "models/tiny/config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


@pytest.fixture
def hub(step: Step) -> Iterator[HubDouble]:
    """A hub with the model org/tiny, and the step pointed to it."""
    model = HubModel({**model_files(), **UNWANTED, **KEPT})
    with HubDouble({"org/tiny": model}) as double:
        step.environment["HF_ENDPOINT"] = double.url
        yield double


def folder(step: Step) -> Path:
    """Where the model of the hub comes to be."""
    return step.volume / "models/org/tiny"


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}
