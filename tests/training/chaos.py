"""Kill training at random times, again and again, and compare bytes with an unbroken run.

Run: `python -m tests.training.chaos --minutes 60 [--seed 1]`. Each round takes another
number of processes, ZeRO stage, architecture, dropout, batch, number of epochs and way of
saving, with LoRA or without, is stopped by SIGTERM or kill -9 after a random time until it gets
to its end, and has to be the unbroken run, byte for byte.
Ends with exit code 1 at the first difference, and leaves the volumes for a look.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.training.forking import log_of, run_step, start_step, wait_for
from tests.training.test_resume import _config, assert_same


def settings_of_a_round(chance: random.Random) -> dict[str, Any]:
    processes = chance.choice([1, 1, 2])
    lora = {"rank": 2, "dropout": chance.choice([0.0, 0.1]), "target_modules": []}
    return {
        "processes": processes,
        "zero_stage": chance.randrange(4),
        "architecture": chance.choice(["gptj", "neox", "llama"]),
        "dropout": chance.choice([0.0, 0.2]),
        "batch_size": chance.choice([1, 2, 3]),
        "gradients": chance.choice([1, 2, 5]),
        "epochs": chance.choice([1, 2, 3]),
        "no_shuffle": chance.random() < 0.2,
        "save_steps": chance.choice([0, 1, 2, 3, 5]),
        "prompt_every": chance.choice([0, 2]),
        "lora": lora if chance.random() < 0.25 else None,
    }


def kill_until_done(config: dict[str, Any], seconds: float, chance: random.Random) -> Counter[str]:
    """Run to the end through random deaths; how often it died of what."""
    deaths: Counter[str] = Counter()
    while True:
        pid = start_step("finetune", config)
        signum = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
        time.sleep(chance.uniform(0, seconds))
        os.kill(pid, signum)
        code = wait_for(pid)
        if code == 0:
            return deaths
        expected = {-signal.SIGKILL, -signal.SIGTERM, 143}
        if code not in expected:
            raise AssertionError(f"ended with {code}: {log_of(config)[-3000:]}")
        deaths[signal.Signals(signum).name] += 1
        seconds *= 1.1  # on a machine that got slower it would never get to its end


def one_round(root: Path, chance: random.Random) -> Counter[str]:
    changes = settings_of_a_round(chance)
    print(json.dumps(changes), flush=True)
    whole, broken = (_config(root / name, **changes) for name in ("whole", "broken"))
    began = time.monotonic()
    if run_step("finetune", whole):
        raise AssertionError(log_of(whole)[-3000:])
    deaths = kill_until_done(broken, 1.2 * (time.monotonic() - began), chance)
    assert_same(broken, whole)
    return deaths


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    chance, until = random.Random(args.seed), time.monotonic() + 60 * args.minutes
    deaths: Counter[str] = Counter()
    rounds = 0
    while time.monotonic() < until:
        root = Path(tempfile.mkdtemp(prefix="chaos-"))
        try:
            deaths += one_round(root, chance)
        except AssertionError as error:
            print(f"DIFFERENT after {rounds} rounds, volumes in {root}: {error}")
            return 1
        shutil.rmtree(root)
        rounds += 1
    print(f"{rounds} rounds, died {dict(deaths)} times, no difference")
    return 0


if __name__ == "__main__":
    sys.exit(main())
