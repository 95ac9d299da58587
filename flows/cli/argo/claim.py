"""What the reference's workflow left on a claim: its runs, as this pipeline lists them.

finetunes/results-{run}/checkpoint-{step}/   Hugging Face's Trainer's; not resumed from here
finetunes/results-{run}/final/               `finetune adopt RUN` makes a run of it
{dataset}-{model}-{context}*.tokens          taken as a dataset: -p dataset=FILE.tokens
"""

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainer.contract.errors import EXIT_REFUSED, RequestError, StepError
from trainer.contract.json_files import readable_object
from trainer.contract.run_folder import run_names

RESULTS = "finetunes/results-"


def reference_runs(volume: Path) -> list[dict[str, Any]]:
    """Name, state, model's folder and time of each run there that is no run here yet."""
    records = (readable_object(volume / name / "run.json") for name in run_names(volume))
    adopted = {record.get("adopted") for record in records if record}
    found = []
    for folder in sorted(volume.glob(f"{RESULTS}*")):
        name = folder.name.removeprefix("results-")
        if folder.is_dir() and name not in adopted:
            changed = datetime.fromtimestamp(folder.stat().st_mtime, UTC)
            found.append(
                {
                    "name": name,
                    "state": _state(folder, name),
                    "model": _base_model(folder),
                    "created": changed.isoformat(timespec="seconds"),
                }
            )
    return found


def token_files(volume: Path) -> list[dict[str, Any]]:
    """Name, state and time of each token file there."""
    found = []
    for path in sorted(volume.glob("*.tokens")):
        changed = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        found.append(
            {
                "name": path.name,
                "state": f"the reference's tokens (-p dataset={path.name})",
                "model": "",
                "created": changed.isoformat(timespec="seconds"),
            }
        )
    return found


def _state(folder: Path, name: str) -> str:
    if (folder / "final/config.json").is_file():
        return f"the reference's, finished (finetune adopt {name})"
    numbers = [path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*")]
    newest = max((int(number) for number in numbers if number.isdecimal()), default=None)
    what = "no checkpoint" if newest is None else f"checkpoint-{newest}"
    return f"the reference's, unfinished ({what})"


def _base_model(folder: Path) -> str:
    config = folder / "final/config.json"
    # transformers writes there what the model was loaded from: a folder on the claim.
    path = str((readable_object(config) or {}).get("_name_or_path", ""))
    return path.partition("/models/")[2] or path


def adopt(volume: Path, run: str, name: str) -> None:
    """Make the run `name` of the reference's finished `run`, in a process that loads torch.

    Raises:
        RequestError: There is no finished model, or the name is taken; it was said already.
        StepError: It failed.
    """
    command = [sys.executable, "-P", "-m", "trainer.adopt.adopt", str(volume), run, name]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    said = done.stderr.removeprefix("error: ").strip()
    if done.returncode == EXIT_REFUSED:
        raise RequestError(said)
    if done.returncode:
        raise StepError(f"the reference's run {run!r} can't be adopted:\n{said}")
