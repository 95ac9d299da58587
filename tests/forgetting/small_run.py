"""A finished run on a small volume of real text, made without Prefect."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from tests.flows.small_volume import make_volume
from tests.training.forking import log_of, run_step
from trainer.contract.step_configs import TokenizeConfig
from trainer.contract.topics import DataConfig, SkipConfig
from trainer.tokens import step as tokenize

DATASET = "dataset"
CONTEXT = 32


def make_run(home: Path, name: str = "one", **changes: Any) -> dict[str, Any]:
    """A volume with a finished run; its finetune config."""
    volume = make_volume(home)
    # One text under two names, and records of many documents in one file.
    twice = (volume / DATASET / "part-1/tale-01.txt").read_text(encoding="utf-8")
    (volume / DATASET / "again.txt").write_text(twice.replace("\n", " \n"), encoding="utf-8")
    lines = [json.dumps({"text": f"The ferry to {n} leaves at dawn.\n" * 4}) for n in range(6)]
    (volume / DATASET / "lines.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for number in range(16):
        short = volume / DATASET / f"short/note-{number}.txt"
        short.parent.mkdir(exist_ok=True)
        short.write_text(f"Note {number}: nobody saw the ferry.\n", encoding="utf-8")
    return train(volume, name, **changes)


def train(
    volume: Path, name: str, tokenized_with: dict[str, Any] | None = None, **changes: Any
) -> dict[str, Any]:
    """Tokenize and train on the volume; `asked`: more of what the request is to record."""
    asked = changes.pop("asked", {})
    skip = changes.get("skip", {"documents": [], "sha256": []})
    data = changes.pop("data", {})
    tokenized = tokenize.run(
        TokenizeConfig(
            volume=str(volume),
            dataset=DATASET,
            model="models/tiny",
            train_ratio=0.9,
            skip=SkipConfig(**skip),
            data=DataConfig(**data),
            **{"context": CONTEXT, **(tokenized_with or {})},
        )
    )
    tokens = tokenized.result["store"]
    config: dict[str, Any] = {
        "volume": str(volume),
        "run_name": name,
        "model": "models/tiny",
        "tokens": tokens,
        "batch_size": 4,
        "gradients": 2,
        "epochs": 2,
        "learn_rate": 0.003,
        "save_steps": 4,
        "zero_stage": 0,
        "checkpoints": {"keep_last": 1, "keep_best": False, "keep_every": 8},
    }
    config |= changes
    request = {"dataset": DATASET, "tokens": tokens, "epochs": config["epochs"], **asked}
    config["request"] = {**request, **({"skip": skip} if "skip" in changes else {})}
    finetune(config)
    return config


def finetune(config: dict[str, Any]) -> None:
    assert run_step("finetune", config) == 0, log_of(config)[-3000:]


def repeated(config: dict[str, Any], name: str, planned: dict[str, Any]) -> dict[str, Any]:
    """The config of the repetition."""
    request = {**config["request"], "skip": planned["skip"]}
    return {**config, "run_name": name, "skip": planned["skip"], "request": request}


def as_json(value: Any) -> Any:
    return json.loads(json.dumps(value, default=dataclasses.asdict))
