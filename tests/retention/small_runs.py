"""Small run folders, made by the functions that steps make them by, and days that go by."""

import os
from pathlib import Path
from typing import Any

from trainer.contract import service_history
from trainer.contract.checkpoints import name_of, part_of
from trainer.contract.run_folder import RunFolder
from trainer.contract.sealed_folder import read_manifest, seal

DAY_SECONDS = 86_400
CHECKPOINT_BYTES = 40_000
FINAL_BYTES = 10_000


def make_run(
    volume: Path, name: str, *, model: str = "models/tiny", tokens: str = "", **record: Any
) -> RunFolder:
    """A finished run with two checkpoints, a final model, logs and events."""
    run = RunFolder(volume, name)
    config = {"logs": "logs", "model": model}
    run.admit(
        {"model": model}, "", {"model": model, "tokens": tokens, "config": config} | record, []
    )
    run.metrics.write_text('{"step": 1, "loss": 2.0}\n')
    for step in (5, 10):
        sealed(run.checkpoints / name_of(step), CHECKPOINT_BYTES, {"step": step})
    sealed(run.final, FINAL_BYTES, {"kind": "final"}, content=name)
    events = volume / "logs" / name / "tensorboard"
    events.mkdir(parents=True)
    (events / "events.out").write_bytes(bytes(2_000))
    (volume / "logs" / name / "finetune.log").write_text("a line\n" * 100)
    return run


def sealed(place: Path, size: int, about: dict[str, Any], content: str = "") -> None:
    part = part_of(place)
    part.mkdir(parents=True)
    (part / "model.safetensors").write_bytes(content.encode().ljust(size, b"\0"))
    seal(part, place, about)


def serve(run: RunFolder, revision: int = 1) -> None:
    """The line that a cluster's deploy step leaves."""
    digest = read_manifest(run.final).digest
    service_history.append(run, "served", revision=revision, model_digest=digest)


def days_go_by(volume: Path, days: float = 1) -> None:
    """Make everything on the volume so much older."""
    for path in [*volume.rglob("*")]:
        then = path.lstat().st_mtime - days * DAY_SECONDS
        os.utime(path, (then, then), follow_symlinks=False)
