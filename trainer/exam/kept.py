"""Results of the model exam: kept on the volume, made where they lack, and what they mean.

    cache/exams/{key}.json

The key covers the model's config, its own code where that may run, what is asked for of LoRA and
ZeRO, the versions of the libraries, and our own code that trains, saves and serves. A folder of
results that were made elsewhere may be named by FINETUNE_EXAMS, which is read and added to;
FINETUNE_EXAMS=off leaves the exam out.
Loads no torch: the exam itself runs in a process of its own.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.contract import events
from trainer.contract.errors import RequestError
from trainer.contract.files import write_atomically
from trainer.contract.json_text import parse_json

FOLDER = "cache/exams"
VARIABLE, OFF = "FINETUNE_EXAMS", "off"
LIMIT_SECONDS = 900  # for a busy machine: it takes 10 on a quiet one
_LIBRARIES = ("torch", "transformers", "peft", "deepspeed", "safetensors", "numpy")
_OWN_CODE = ("checkpoints", "exam", "models", "serving", "training")
PASSES = "passes"  # in the table of a report
WITHOUT_TRAINING = ("cache",)  # what may fail and the model still be trained
WHAT = {
    "final": "`final` would not be the model that was trained",
    "loss": "its loss would not be transformers' own",
    "causal": "each token sees later ones",
    "cache": "the built-in server would answer wrongly",
    "lora": "its merged LoRA would not be what was trained",
    "processes": "several processes would train otherwise than one",
    "resume": "an interrupted run would not resume exactly",
    "packed": "documents that are packed into a context would change each other's loss",
}


@dataclass(frozen=True)
class Asked:
    """What the exam is asked for beside the model."""

    lora: dict[str, Any] | None = None
    zero_stage: int = 3
    trust_remote_code: bool = False

    @classmethod
    def of_request(cls, request: Mapping[str, Any], trust_remote_code: bool) -> "Asked":
        """From the parameters that define a run."""
        lora = request.get("lora")
        as_json = json.dumps(lora, default=dataclasses.asdict)
        return cls(
            lora=parse_json(as_json) if lora else None,
            zero_stage=request.get("zero_stage", 3),
            trust_remote_code=trust_remote_code,
        )


@dataclass(frozen=True)
class ExamResult:
    """What the exam found; see trainer/exam/examine.py."""

    model_type: str
    checks: dict[str, str] = field(default_factory=dict)
    not_examined: str = ""

    def problems(self, name: str, with_lora: bool, *, packed: bool = False) -> list[str]:
        """Why the model must not be trained, a sentence for each check that failed.

        Args:
            name: Of the model, as the user knows it.
            with_lora: Whether adapters are asked for.
            packed: Whether whole documents are to be packed into contexts.
        """
        if packed and self.not_examined and not self.is_switched_off:
            return [
                f"data.packing needs a model that was examined (got {name}: {self.not_examined}). "
                "Nothing else shows that its documents stay apart. Leave data.packing out."
            ]
        asked = {"lora": with_lora, "packed": packed}
        left_out = {*WITHOUT_TRAINING, *(check for check, wanted in asked.items() if not wanted)}
        return [
            f"model {name} fails the model exam: {WHAT[check]} (got model_type "
            f"{self.model_type!r}; {wrong}). {_way_out(check)}"
            for check, wrong in self.checks.items()
            if wrong and check not in left_out
        ]

    @property
    def is_switched_off(self) -> bool:
        return self.not_examined == f"{VARIABLE}={OFF}"

    def table(self) -> dict[str, str]:
        """Each check and its result, for the report."""
        if self.not_examined:
            return {"not examined": self.not_examined}
        return {check: wrong or PASSES for check, wrong in self.checks.items()}

    def notes(self, name: str, engine: str = "builtin") -> list[str]:
        """What to say at once of a model that may be trained."""
        if self.is_switched_off:
            return []
        if self.not_examined:
            return [
                f"model {name} could not be examined, because no small copy of it could be made "
                f"({self.not_examined}). It is trained unexamined: check the result yourself."
            ]
        return only_vllm(name, self.builtin_wrong) if engine == "builtin" else []

    @property
    def builtin_wrong(self) -> str:
        """What is wrong with the built-in server's answers; empty: nothing is known to be."""
        return self.checks.get("cache", "")


def builtin_wrong_in(table: Mapping[str, str]) -> str:
    """The same as `ExamResult.builtin_wrong`, of a table that a fetch step left."""
    found = table.get("cache", PASSES)
    return "" if found == PASSES else found


def only_vllm(name: str, wrong: str) -> list[str]:
    """What to say of a model that the built-in server answers wrongly with."""
    if not wrong:
        return []
    return [
        f"model {name} trains, but the built-in server can't serve it ({wrong}). "
        "Only vLLM may: serving.engine=vllm, on a GPU. Or serve `final` elsewhere."
    ]


def _way_out(check: str) -> str:
    if check == "lora":
        return "Name other layers in lora's target_modules, or leave lora out."
    if check == "packed":
        return "Leave data.packing out, or take another model."
    if check == "processes":
        return "Set trainer_gpus=1, or another zero_stage."
    return "Take another model, and report this one with its config.json."


def exam_of(
    volume: Path, folder: Path, asked: Asked, tell: Callable[[str], None] = events.notice
) -> ExamResult:
    """The result for the model in `folder`: kept in the volume's cache, or made now and kept.

    Args:
        tell: Says that it is being made.
    Raises:
        RequestError: The folder has no readable config.json.
    """
    if os.environ.get(VARIABLE) == OFF:
        return ExamResult("", not_examined=f"{VARIABLE}={OFF}")
    key = key_of(folder, asked)
    if (found := kept_result(volume, key)) is not None:
        return found
    tell("examining the model's architecture on the CPU: once, for some seconds")
    made = _made(folder, asked)
    for place in (volume / FOLDER, *_elsewhere()):
        with contextlib.suppress(OSError):  # full or read-only: it is made again next time
            write_atomically(place / f"{key}.json", json.dumps(dataclasses.asdict(made), indent=1))
    return made


def kept_result(volume: Path, key: str) -> ExamResult | None:
    """The result under `key`, on the volume or where FINETUNE_EXAMS says."""
    for place in (volume / FOLDER, *_elsewhere()):
        try:
            return ExamResult(**parse_json((place / f"{key}.json").read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            continue  # none, or damaged: it is made anew
    return None


def key_of(folder: Path, asked: Asked) -> str:
    """What a result of the model in `folder` is kept under."""
    try:
        config = parse_json((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"model {folder.name} has no readable config.json ({error}).") from error
    code = {}
    if asked.trust_remote_code:
        code = {p.name: _digest(p.read_bytes()) for p in sorted(folder.glob("*.py"))}
    known = {
        "config": config,
        "code": code,
        "asked": dataclasses.asdict(asked),
        "versions": {name: _version(name) for name in _LIBRARIES},
        "own": _own_code(),
    }
    return _digest(json.dumps(known, sort_keys=True).encode())[:32]


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return ""  # where only plans are made


@functools.cache
def _own_code() -> str:
    root = Path(__file__).parent.parent
    files = (path for part in _OWN_CODE for path in sorted((root / part).rglob("*.py")))
    return _digest(b"".join(path.read_bytes() for path in files))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _elsewhere() -> list[Path]:
    named = os.environ.get(VARIABLE, OFF)
    return [] if named == OFF else [Path(named)]


def _made(folder: Path, asked: Asked) -> ExamResult:
    """Run the exam in a process of its own, which may crash and is given no GPU."""
    with tempfile.TemporaryDirectory(prefix="finetune-exam-") as name:
        result = Path(name) / "result.json"
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "trainer.exam", str(folder), str(result),
             json.dumps(dataclasses.asdict(asked))],
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
                 "DS_ACCELERATOR": "cpu"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        try:
            _, said = process.communicate(timeout=LIMIT_SECONDS)
        except subprocess.TimeoutExpired:
            return ExamResult("", not_examined=f"it took more than {LIMIT_SECONDS} s")
        finally:
            process.kill()
        if result.exists():
            return ExamResult(**parse_json(result.read_text(encoding="utf-8")))
    last = (said.strip().splitlines() or ["nothing was said"])[-1]
    return ExamResult("", not_examined=f"its process ended with {process.returncode}: {last[:200]}")
