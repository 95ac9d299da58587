"""A training step that gets a signal at a given place: `python -m benchmarks.gpu.struck ...`.

A process of its own, started as a run's is; forks, as the tests make them, can't use a GPU that
their parent has touched.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.training import forking
from tests.training.forking import Strike


def run(config: dict[str, Any], strike: Strike | None) -> int:
    """Train in a new process; its exit code, or minus the signal that killed it."""
    root = Path(config["volume"])
    path = root / "finetune.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    words = [str(path)]
    if strike is not None:
        words += [strike.place, str(strike.nth), str(int(strike.after)), str(int(strike.signum))]
    with open(root.parent / f"{root.name}-finetune.log", "ab") as log:
        command = [sys.executable, "-m", "benchmarks.gpu.struck", *words]
        return subprocess.run(command, stdout=log, stderr=log).returncode


def main(path: str, *struck: str) -> int:
    from trainer import __main__ as command

    if struck:
        place, nth, after, signum = struck
        strike = Strike(place, int(nth), bool(int(after)), signal.Signals(int(signum)))
        forking._arm(strike, os.getpid())
    return command.main(["finetune", path])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
