"""How long a stopped run takes to its first new step, at step 100 and at step 100,000.

Run: `python -m benchmarks.training_resume [--rounds 5]`. Starts the real step again and again
and kills it after two steps. The time from the start of the process to the first new line of
metrics is compared with a process that does what nobody can leave out: the same imports,
reading the bytes of the checkpoint once, and one step. Medians of rounds that take turns.
Also: the share of a step that waits for data, over the run's first steps.

The run far ahead is the near one: its checkpoint of step 100, sealed again as one of step
100,000, with as many lines of metrics.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ratios import say_ratio
from benchmarks.training_peers import VOCABULARY, make_model
from tests.training.volume import make_tokenizer, write_store
from trainer.contract.checkpoints import name_of
from trainer.contract.events import parse_event
from trainer.contract.sealed_folder import read_manifest, seal
from trainer.models import gptj

NEAR, FAR = 100, 100_000
IMPORTS = """
import sys
import trainer.__main__, trainer.training.step, trainer.training.process
from trainer.training.engine.start_up import import_deepspeed
import_deepspeed()
import deepspeed
for path in sys.argv[1:]:
    with open(path, "rb", buffering=0) as file:
        while file.read(2**20):
            pass
"""


def make_volume(root: Path, args: argparse.Namespace) -> dict[str, Any]:
    """A model of about 20 M parameters, and contexts for more steps than FAR."""
    folder = root / "models" / "tiny"
    make_model("gptj", args.width, args.layers, args.context).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    contexts = FAR + 1000
    ids = np.random.default_rng(1).integers(1, VOCABULARY, (contexts, args.context), dtype="<u2")
    lengths = np.full(contexts, args.context, dtype="<u4")
    write_store(root / "tokens" / "tiny", ids, lengths, contexts)
    return {
        "volume": str(root),
        "run_name": "near",
        "model": "models/tiny",
        "tokens": "tokens/tiny",
        "batch_size": 1,
        "gradients": 1,
        "zero_stage": 0,
        "save_steps": NEAR,
    }


def run_until(config: dict[str, Any], step: int) -> dict[int, float]:
    """Seconds from the start of the process to each new step; it is killed after `step`."""
    path = Path(config["volume"]) / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    began, seconds = time.perf_counter(), {}
    command = [sys.executable, "-m", "trainer", "finetune", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            event = parse_event(line.rstrip("\n"))
            if event is not None and event.kind == "metric" and "loss" in event.fields:
                seconds[event.fields["step"]] = time.perf_counter() - began
                if event.fields["step"] >= step:
                    break
        process.kill()
    return seconds


def make_far(root: Path) -> None:
    """The run `far`: the near one's checkpoint, sealed as one that is FAR steps ahead."""
    near, far = root / "near", root / "far"
    (far / "checkpoints").mkdir(parents=True)
    shutil.copyfile(near / "run.json", far / "run.json")
    lines = (near / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    size = 0
    with open(far / "metrics.jsonl", "wb") as file:
        for step in range(1, FAR + 1):
            line = {**json.loads(lines[(step - 1) % NEAR]), "step": step}
            size += file.write(json.dumps(line).encode() + b"\n")
    manifest = read_manifest(near / "checkpoints" / name_of(NEAR))
    part = far / "checkpoints" / "part"
    shutil.copytree(near / "checkpoints" / name_of(NEAR), part)
    (part / "manifest.json").unlink()
    about = {**manifest.about, "step": FAR, "looked_at": FAR, "records": {"metrics.jsonl": size}}
    about["optimizer"]["steps"] = float(FAR)
    seal(part, part.with_name(name_of(FAR)), about, manifest.files)


def needed(checkpoint: Path) -> float:
    """Seconds of a process that imports what training imports and reads the checkpoint."""
    files = [str(path) for path in checkpoint.iterdir()]
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", IMPORTS, *files], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def measure(config: dict[str, Any], rounds: int) -> dict[str, float]:
    root = Path(config["volume"])
    found: dict[str, list[float]] = {"near": [], "far": [], "needed": [], "step": []}
    for _ in range(rounds):
        for name, step in (("near", NEAR), ("far", FAR)):
            seconds = run_until({**config, "run_name": name}, step + 2)
            found[name].append(seconds[step + 1])
            found["step"].append(seconds[step + 2] - seconds[step + 1])
        found["needed"].append(needed(root / "near" / "checkpoints" / name_of(NEAR)))
    return {name: statistics.median(values) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--context", type=int, default=64)
    args = parser.parse_args()
    gptj.install()
    root = Path(tempfile.mkdtemp())
    try:
        config = make_volume(root, args)
        run_until(config, NEAR + 10)
        make_far(root)
        checkpoint = root / "near" / "checkpoints" / name_of(NEAR)
        mib = sum(path.stat().st_size for path in checkpoint.iterdir()) / 2**20
        lines = (root / "near" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[1:]
        waits = [json.loads(line).get("data_wait_share") for line in lines]
        seconds = measure(config, args.rounds)
    finally:
        shutil.rmtree(root)
    least = seconds["needed"] + seconds["step"]
    ratios = {name: round(seconds[name] / least, 3) for name in ("near", "far")}
    shown = {name: round(value, 3) for name, value in seconds.items()}
    print(json.dumps({"mib": round(mib), "seconds": shown, "over_needed": ratios}))
    for name, ratio in ratios.items():
        say_ratio(f"resume, {name} over imports, reading and a step", ratio, higher=False)
    print(json.dumps({"far_over_near": round(seconds["far"] / seconds["near"], 3)}))
    wait = statistics.fmean(share for share in waits if share is not None)
    print(json.dumps({"share_of_steps_waiting_for_data": round(wait, 6)}))


if __name__ == "__main__":
    main()
