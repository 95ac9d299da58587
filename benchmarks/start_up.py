"""From `finetune run` to the first optimizer step, and from a finished run's command to its prompt.

Run: `python -m benchmarks.start_up [--rounds 3]`. Each is compared, in turns within one run, with
what nobody can leave out: a process that imports torch, transformers and DeepSpeed, and one that
runs an empty Prefect flow. Cold: a new home, no tokens, and every step a process that imports all
for itself. Warm: another run in the same home, whose steps are forks of the command's warm parent.
Wall time and processor time; on a busy machine trust the latter.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks.ratios import say_ratio
from tests.flows import small_volume
from trainer.contract.warm import OFF, VARIABLE

ROOT = Path(__file__).parents[1]
IMPORTS = "import os; os.environ['DS_ACCELERATOR'] = 'cpu'; import torch, transformers, deepspeed"
EMPTY_FLOW = """
from prefect import flow
@flow
def empty():
    pass
empty()
"""


class Taken(NamedTuple):
    """Seconds of a command."""

    wall: float
    cpu: float
    first_step: float = 0.0
    """Until the first line of metrics; 0: there was none."""


def timed(words: list[str], home: Path, metrics: Path | None = None, *, warm: bool = True) -> Taken:
    """Run a command to its end; look for the first line of `metrics` meanwhile."""
    environment = {**os.environ, "PREFECT_HOME": str(home / "prefect"), "DO_NOT_TRACK": "1"}
    environment["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
    if not warm:
        environment[VARIABLE] = OFF
    log = home / "log"
    before, began, first = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter(), 0.0
    with open(log, "wb") as output:
        process = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=output, stderr=output)
        while process.poll() is None:
            if metrics and not first and _has_step(metrics):
                first = time.perf_counter() - began
            time.sleep(0.01)
    if process.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {process.returncode}: {log.read_text()}")
    wall, used = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    return Taken(wall, cpu, first)


def _has_step(metrics: Path) -> bool:
    try:
        return b'"loss"' in metrics.read_bytes()
    except FileNotFoundError:
        return False


def run(home: Path, name: str, *, warm: bool = True) -> Taken:
    """`finetune run` of one epoch on a tiny model and a little text."""
    given = ["model=models/tiny", "dataset=dataset", "context=64", "epochs=1", "batch_size=8"]
    given += [f"run_name={name}", "gradients=4", "save_steps=0", "zero_stage=0"]
    words = [word for pair in given for word in ("-p", pair)]
    command = [sys.executable, "-m", "flows.cli", "run", *words, "--home", str(home)]
    return timed(command, home, home / small_volume.PVC / name / "metrics.jsonl", warm=warm)


def one_round(home: Path) -> dict[str, Taken]:
    """All contenders once, in a home that is new."""
    small_volume.make_volume(home)
    turns: dict[str, Callable[[], Taken]] = {
        "imports": lambda: timed([sys.executable, "-c", IMPORTS], home),
        "cold": lambda: run(home, "one", warm=False),
        "empty flow": lambda: timed([sys.executable, "-c", EMPTY_FLOW], home),
        "warm": lambda: run(home, "two"),
        "finished": lambda: run(home, "two"),
    }
    return {name: turn() for name, turn in turns.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    rounds = []
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as name:
            rounds.append(one_round(Path(name)))
    medians = {
        name: Taken(*(statistics.median(r[name][n] for r in rounds) for n in range(3)))
        for name in rounds[0]
    }
    shown = {name: [round(n, 2) for n in taken] for name, taken in medians.items()}
    print(json.dumps({"wall, cpu, first step": shown, "load": os.getloadavg(), **_machine()}))
    least = [medians["imports"][n] + medians["empty flow"][n] for n in range(2)]
    for name in ("cold", "warm"):
        say_ratio(
            f"start-up, {name}: first step over imports and an empty flow",
            medians[name].first_step / least[0],
            higher=False,
        )
        say_ratio(
            f"start-up, {name}: processor time of the run over theirs",
            medians[name].cpu / least[1],
            higher=False,
        )
    for n, kind in enumerate(("wall", "processor")):
        say_ratio(
            f"start-up, finished run over an empty flow, {kind} time",
            medians["finished"][n] / medians["empty flow"][n],
            higher=False,
        )


def _machine() -> dict[str, object]:
    return {"cores": os.cpu_count(), "python": sys.version.split()[0]}


if __name__ == "__main__":
    main()
