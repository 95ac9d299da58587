"""Forget random documents of random runs, kill it at random times, compare with runs from scratch.

Run: `python -m tests.forgetting.chaos --minutes 60 [--seed 1]`, or `make chaos-forget MINUTES=60`.
Each round trains a run with other settings and answers some requests: documents by path, by
number or by a sentence. The run that forgets begins at a checkpoint, the other at its start; both
are killed at random times until they get to their end, and have to be the same, byte for byte.
Ends with exit code 1 at the first difference, and leaves the volume for a look.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.forgetting.small_run import CONTEXT, DATASET, make_run, repeated
from tests.training.chaos import kill_until_done
from tests.training.forking import log_of, run_step
from tests.training.test_resume import comparable
from trainer.contract.run_folder import RunFolder
from trainer.forgetting.begin import begin, plan_forgetting
from trainer.forgetting.finding import Asked
from trainer.forgetting.recorded import store_of
from trainer.tokens.left_out import all_documents, document_names

REQUESTS = 4  # of each run


def settings_of_a_round(chance: random.Random) -> dict[str, Any]:
    lora = {"rank": 2, "dropout": chance.choice([0.0, 0.1]), "target_modules": []}
    return {
        "processes": chance.choice([1, 1, 2]),
        "zero_stage": chance.randrange(4),
        "batch_size": chance.choice([2, 4, 8]),
        "gradients": chance.choice([1, 2]),
        "epochs": chance.choice([1, 2]),
        "no_shuffle": chance.random() < 0.2,
        "save_steps": chance.choice([2, 4, 8]),
        "checkpoints": {"keep_last": 1, "keep_every": chance.choice([0, 8, 16])},
        "lora": lora if chance.random() < 0.25 else None,
    }


def request_of(chance: random.Random, run: RunFolder) -> Asked:
    """Documents by number, all of a file, or a sentence; long ones less often."""
    names = list(document_names(store_of(run), all_documents(store_of(run))))
    short = [name for name in names if "tale" not in name]
    kind = chance.choice(["short", "short", "many", "long", "sentence"])
    if kind == "sentence":
        return Asked(containing=[f"Note {chance.randrange(9)}: nobody"])
    if kind == "many":
        return Asked(documents=chance.sample(short, chance.randint(2, 6)))
    return Asked(documents=[chance.choice(short if kind == "short" else names)])


def one_request(
    config: dict[str, Any], number: int, chance: random.Random, seconds: float
) -> tuple[Counter[str], dict[str, Any]]:
    """Forget, do the same from scratch, compare."""
    volume = Path(config["volume"])
    run = RunFolder(volume, "one")
    planned = plan_forgetting(volume, run, request_of(chance, run))
    again = repeated(config, f"new-{number}", planned)
    begin(volume, run, again["run_name"], planned, again["request"])
    scratch = {**again, "run_name": f"scratch-{number}"}
    deaths: Counter[str] = Counter()
    for one in (again, scratch):
        deaths += kill_until_done(one, 1.5 * seconds, chance)
    found, expected = (comparable(volume / one["run_name"]) for one in (again, scratch))
    if found != expected:
        raise AssertionError(f"{again['run_name']} differs: {json.dumps(planned)[:2000]}")
    for one in (again, scratch):
        shutil.rmtree(volume / one["run_name"])
    return deaths, planned


def one_round(root: Path, chance: random.Random, until: float) -> tuple[Counter[str], Counter[str]]:
    """A run and its requests; deaths by signal, and requests by where they began."""
    changes = settings_of_a_round(chance)
    print(json.dumps(changes), flush=True)
    config = make_run(root, "one", **changes)
    began = time.monotonic()
    timed = {**config, "run_name": "timed"}
    if run_step("finetune", timed):
        raise AssertionError(log_of(timed)[-3000:])
    seconds = time.monotonic() - began
    deaths: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    for number in range(REQUESTS):
        if time.monotonic() > until:
            break
        died, planned = one_request(config, number, chance, seconds)
        deaths += died
        if planned["first_step"] is None:
            kinds["held out alone"] += 1
        else:
            kinds["from a checkpoint" if planned["from_step"] else "from the base model"] += 1
    return deaths, kinds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    chance, until = random.Random(args.seed), time.monotonic() + 60 * args.minutes
    deaths: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    rounds = 0
    while time.monotonic() < until:
        root = Path(tempfile.mkdtemp(prefix="chaos-forget-"))
        try:
            died, done = one_round(root, chance, until)
        except AssertionError as error:
            print(f"DIFFERENT after {kinds.total()} requests, volume in {root}: {error}")
            return 1
        deaths, kinds, rounds = deaths + died, kinds + done, rounds + 1
        shutil.rmtree(root)
    print(
        f"{kinds.total()} requests of {rounds} runs ({DATASET}, contexts of {CONTEXT}): "
        f"{dict(kinds)}, died {dict(deaths)} times, no difference"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
