"""The step `again`: what `finetune forget`, `blame` and `replay` do in a process, as a Job.

It prints what that process prints: trainer/contract/asked_process.py.
"""

import contextlib
import importlib
import json
import tempfile
from pathlib import Path

from trainer.contract.asked_process import hand_over
from trainer.contract.errors import DamagedError
from trainer.contract.run_folder import RunFolder
from trainer.contract.sealed_folder import read_manifest
from trainer.contract.step_configs import AgainConfig
from trainer.steps import StepResult

MODULES = {
    "forget": "trainer.forgetting",
    "blame": "trainer.blaming",
    "replay": "trainer.replaying",
}
# What a command makes the parameters of, and what a repetition is known by.
RECORDED = ("request", "config", "sizing", "forgets")


def run(config: AgainConfig) -> StepResult:
    """Do it; `exit_code` in the result is the command's."""
    if config.action == "look":
        hand_over(_recorded(config))
        return StepResult(result={"exit_code": 0})
    act = importlib.import_module(f"{MODULES[config.action]}.__main__").act
    before = [config.command] if config.command else []
    words = [*before, config.volume, config.run, *config.words]
    with tempfile.TemporaryDirectory() as folder:
        if config.given is not None:
            file = Path(folder) / "given.json"
            file.write_text(json.dumps(config.given), encoding="utf-8")
            words.append(str(file))
        code = act(words)
    return StepResult(result={"exit_code": code})


def _recorded(config: AgainConfig) -> dict[str, object]:
    """Parts of run.json, and what training came to; empty where there is no such run."""
    run = RunFolder(config.volume, config.run)
    if (record := run.record()) is None:
        return {}
    outcome = run.outcome("finetune")
    found = {name: record[name] for name in RECORDED if name in record}
    found["budget_ends"] = (outcome.result if outcome else {}).get("budget_ends", [])
    found["is_finished"] = False
    with contextlib.suppress(DamagedError):
        found["is_finished"] = bool(read_manifest(run.final))
    return found
