"""Whether a run that was stopped is the run that was not, bit for bit, and what that costs."""

import json
import shutil
import signal
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import struck
from benchmarks.gpu.scale import Scale
from benchmarks.gpu.sizes import fill_volume
from tests.training import forking
from tests.training.forking import Strike
from tests.training.volume import read_lines
from trainer.tokens.store import file_digest
from trainer.training.save.records import MEASURED

ENGINE, SAVING = "trainer.training.engine.engine", "trainer.training.save.saving"
STEPS, SAVE_STEPS = 12, 4
KILLED = (
    Strike(f"{ENGINE}:Engine.loss", 2),
    Strike(f"{SAVING}:write_tensors", 1),
    Strike(f"{SAVING}:seal", 1, after=True),
    Strike("trainer.training.process:restore", 1),
    Strike(f"{ENGINE}:Engine.backward", 2, after=True),
)
TERMINATED = (
    Strike(f"{ENGINE}:Engine.step", 2, signum=signal.SIGTERM),
    Strike(f"{ENGINE}:Engine.backward", 3, after=True, signum=signal.SIGTERM),
    Strike(f"{SAVING}:seal", 1, signum=signal.SIGTERM),
)


def stopped(scale: Scale, with_kill: bool, deterministic: bool = True) -> dict[str, Any]:
    """Stop a run at several places, one after the other; compare with one that ran through."""
    strikes = KILLED if with_kill else TERMINATED
    with tempfile.TemporaryDirectory() as name:
        whole = _volume(Path(name) / "whole", scale, deterministic)
        broken = _copy(whole, "broken")
        codes = [_run(scale, broken, strike) for strike in strikes]
        _finish(scale, broken)
        _finish(scale, whole)
        expected = -signal.SIGKILL if with_kill else 143
        return {
            "stopped": sum(code == expected for code in codes),
            "of": len(strikes),
            **_compare(broken, whole),
        }


def repeated(scale: Scale, deterministic: bool) -> dict[str, Any]:
    """Train twice from the start; the same bits? And seconds of a step."""
    with tempfile.TemporaryDirectory() as name:
        once = _volume(Path(name) / "once", scale, deterministic)
        again = _copy(once, "again")
        for config in (once, again):
            _finish(scale, config)
        ends = [line["seconds"] for line in _lines(once)]
        seconds = [after - before for before, after in pairwise(ends)]
        return {**_compare(again, once), "seconds": statistics.median(seconds[2:])}


def _volume(root: Path, scale: Scale, deterministic: bool) -> dict[str, Any]:
    root.mkdir()
    loaded = fill_volume(
        root,
        scale,
        scale.little(),
        STEPS,
        batch_size=1,
        save_steps=SAVE_STEPS,
        learn_rate=1e-4,
        kernels={"deterministic": deterministic},
    )
    return json.loads(json.dumps(asdict(loaded), default=str))


def _copy(config: dict[str, Any], name: str) -> dict[str, Any]:
    root = Path(config["volume"])
    shutil.copytree(root, root.with_name(name))
    return {**config, "volume": str(root.with_name(name))}


def _run(scale: Scale, config: dict[str, Any], strike: Strike | None = None) -> int:
    if scale.small:  # in forks of this process, without the imports
        return forking.run_step("finetune", config, strike)
    return struck.run(config, strike)


def _finish(scale: Scale, config: dict[str, Any]) -> None:
    if code := _run(scale, config):
        log = Path(config["volume"] + "-finetune.log").read_text(encoding="utf-8")
        raise RuntimeError(f"the run ended with {code}: {log[-2000:]}")


def _lines(config: dict[str, Any]) -> list[dict[str, Any]]:
    lines = read_lines(Path(config["volume"]) / "run" / "metrics.jsonl")
    return [line for line in lines if "loss" in line]


def _compare(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    said: Sequence[list[dict[str, Any]]] = [
        [{k: v for k, v in line.items() if k not in MEASURED} for line in _lines(config)]
        for config in (one, other)
    ]
    digests = [_final_digest(config) for config in (one, other)]
    apart = [abs(a["loss"] - b["loss"]) for a, b in zip(*said, strict=False)]
    return {
        "same_losses": said[0] == said[1],
        "same_weights": digests[0] == digests[1],
        "largest_difference_of_a_loss": max(apart),
        "lines": len(said[0]),
        "on": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
    }


def _final_digest(config: dict[str, Any]) -> list[str]:
    final = Path(config["volume"]) / "run" / "final"
    return [file_digest(path) for path in sorted(final.glob("*.safetensors"))]
