"""Stands where `python -m trainer` stands: the steps of a run, with a model that is a number.

`final/` holds the learning rate, and a held-out loss is that number. Folders, records and
digests are the trainer's own. Loads no torch.
"""

import json
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainer.contract.files import short_digest
from trainer.contract.run_folder import RunFolder
from trainer.contract.sealed_folder import read_manifest, seal


def fetch(config: dict[str, Any], run: RunFolder) -> dict[str, Any]:
    final = read_manifest(run.final).digest if run.final.exists() else ""
    report = short_digest(run.report) if run.report.exists() else ""
    digests = {"dataset": "d", "model": "m", "tokenizer": "t", "final": final, "report": report}
    return {"model": "models/m", "tokenizer": "", "digests": digests}


def tokenize(config: dict[str, Any], run: RunFolder) -> dict[str, Any]:
    return {"store": "tokens/s"}


def finetune(config: dict[str, Any], run: RunFolder) -> dict[str, Any]:
    if config["no_resume"]:
        run.start_over(config["attempt"])
    run.admit(config["request"], config["attempt"], {}, [])
    while (run.root.parent / "hold").exists():
        time.sleep(0.02)
    if not run.final.exists():
        beside = run.root / "final.part"
        beside.mkdir()
        (beside / "weights").write_text(str(config["learn_rate"]))
        seal(beside, run.final, {})
    digests = {"final": read_manifest(run.final).digest, "admission": run.admission}
    return {"final": f"{config['run_name']}/final", "digests": digests}


def evaluate(config: dict[str, Any], run: RunFolder) -> dict[str, Any]:
    loss = float((run.final / "weights").read_text())
    run.report.write_text(json.dumps({"loss": loss}))
    return {"loss": loss, "digests": {"report": short_digest(run.report)}}


def main() -> None:
    step, path = sys.argv[-2:]
    config = json.loads(Path(path).read_text())
    volume = Path(config["volume"])
    with open(volume / "done", "a") as file:
        file.write(f"{step}\n")
    started = datetime.now(UTC).isoformat(timespec="milliseconds")
    result = globals()[step](config, RunFolder(volume, config["run_name"]))
    outcome = {"step": step, "status": "done", "started": started, "result": result}
    Path(os.environ["FINETUNE_TERMINATION_PATH"]).write_text(json.dumps(outcome))


main()
