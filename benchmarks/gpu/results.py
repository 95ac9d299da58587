"""What the exam found: one JSON file for each part, written after every case."""

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from trainer.contract.files import write_atomically

PACKAGES = ("torch", "transformers", "deepspeed", "peft", "bitsandbytes", "liger-kernel", "vllm")


@dataclass
class PartResult:
    """Of one part: each case is {"found": {...}}, {"not_run": reason} or {"failed": reason}."""

    part: str
    small: bool
    machine: dict[str, Any] = field(default_factory=dict)
    cases: dict[str, dict[str, Any]] = field(default_factory=dict)

    def is_done(self, names: list[str]) -> bool:
        """Whether each case gave a figure or a reason. One that failed is run again."""
        return all("failed" not in self.cases.get(name, {"failed": ""}) for name in names)


def path_of(folder: Path, part: str) -> Path:
    return folder / f"{part}.json"


def read(folder: Path, part: str, small: bool) -> PartResult:
    """What is there; an empty one where there is nothing, or it is of the other scale."""
    path = path_of(folder, part)
    if path.exists():
        found = PartResult(**json.loads(path.read_text(encoding="utf-8")))
        if found.small == small:
            return found
    return PartResult(part, small)


def write(folder: Path, result: PartResult) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path_of(folder, result.part), json.dumps(asdict(result), indent=1))


def machine() -> dict[str, Any]:
    """What computed: named with the figures."""
    import torch

    there = torch.cuda.is_available()
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if there else f"CPU {platform.machine()}",
        "python": platform.python_version(),
        "cuda": torch.version.cuda or "",
    }
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def cells(found: Mapping[str, Any]) -> str:
    """`name value` of each figure, with four digits."""
    return ", ".join(f"{name} {_short(value)}" for name, value in found.items())


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return f"{value:,}" if type(value) is int else str(value)
