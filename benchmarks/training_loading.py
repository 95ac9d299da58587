"""Host memory while a model is loaded for training, over the size of its weights on disk.

Run: `python -m benchmarks.training_loading [--width 1024] [--layers 8]`. Starts the training
processes of a node, has them build their engine and fill it with the base model's weights, and
adds up what they hold (proportional set size, mapped files with it) every few milliseconds.
Printed over the size of the weights on disk, less what the processes held before: `model`, the
peak until the model is made, before it is split; `peak` of all; `stays`, what training continues
to hold (weights, their fp32 copies, gradients' and Adam's numbers: with a GPU most of it is
there); `loading`, the weights and what the peak was above `stays`. Aims: `model` and `loading`
at most 1.2. "whole" loads the model into each process, "first alone" into the first one, which
hands it on (what training does where the weights are not the model's own safetensors), "own
part" is what training does otherwise.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

from benchmarks.training_peers import make_model
from trainer.models import gptj

CHILD = """
import sys
from pathlib import Path
folder, rank, world, stage, precision, way = sys.argv[1:]
import torch
from trainer import host_memory
from trainer.models import load_base
from trainer.training.engine.base import weights_for
from trainer.training.engine.engine import DTYPES, Engine, EngineOptions
from trainer.training.engine.partitions import put_in_place, slices_to_fill
from trainer.training.save.saving import restore
from trainer.training.engine.start_up import import_deepspeed, join_processes
import_deepspeed()
join_processes(int(rank), int(world))
print("ready", flush=True)
sys.stdin.readline()
later = way == "own part" or (way == "first alone" and rank != "0")
with host_memory.given_back():
    model = load_base(Path(folder), filled_later=later, dtype=DTYPES[precision])
    weights = weights_for(model, Path(folder)) if way == "own part" else None
    print("made", flush=True)
    sys.stdin.readline()
    options = EngineOptions(rank=int(rank), world=int(world), batch_size=1, zero_stage=int(stage),
                            precision=precision)
    engine = Engine(model, options)
    slices = slices_to_fill(engine)
    if weights is not None:
        restore(slices, weights, ("weight",))
        put_in_place(engine)
print("loaded", flush=True)
sys.stdin.readline()
"""


def held_bytes(processes: list[subprocess.Popen[str]]) -> int:
    total = 0
    for process in processes:
        lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return 1024 * total


def measure(folder: Path, world: int, stage: int, precision: str, way: str) -> dict[str, float]:
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    with tempfile.TemporaryDirectory() as meeting:
        meet = {
            "FINETUNE_RENDEZVOUS": f"file://{meeting}/store",
            "GLOO_SOCKET_IFNAME": "lo",
        }
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", CHILD, *map(str, (folder, n, world, stage, precision, way))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **meet, "LOCAL_RANK": str(n)},
            )
            for n in range(world)
        ]
        try:
            for process in processes:
                _wait_for(process, "ready")
            before = held_bytes(processes)
            made, _ = _watch(processes, "made")
            peak, stays = _watch(processes, "loaded")
        finally:
            for process in processes:
                process.kill()
                process.wait()
    peak = max(made, peak)
    found = {"model": made - before, "peak": peak - before, "stays": stays - before}
    found["loading"] = size + peak - stays
    return {name: round(held / size, 3) for name, held in found.items()}


def _watch(processes: list[subprocess.Popen[str]], word: str) -> tuple[int, int]:
    """Bytes held at the most until all say `word`, and then."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    waiting = [threading.Thread(target=_wait_for, args=(p, word)) for p in processes]
    for thread in waiting:
        thread.start()
    peak = 0
    while any(thread.is_alive() for thread in waiting):
        peak = max(peak, held_bytes(processes))
        time.sleep(0.005)
    return peak, held_bytes(processes)


def _wait_for(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == word:
            return
    raise RuntimeError(f"a process ended before it was {word}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=8)
    args = parser.parse_args()
    gptj.install()
    for precision in ("fp32", "bf16"):
        with tempfile.TemporaryDirectory() as name:
            model = make_model("gptj", args.width, args.layers, 128)
            model.to(torch.bfloat16 if precision == "bf16" else torch.float32)
            model.save_pretrained(name)
            del model
            for world, stage in ((1, 0 if precision == "fp32" else 1), (2, 3)):
                for way in ("whole", "first alone", "own part") if world > 1 else ("own part",):
                    found = measure(Path(name), world, stage, precision, way)
                    about = {"precision": precision, "processes": world, "zero_stage": stage}
                    print(json.dumps({**about, "way": way, **found}), flush=True)


if __name__ == "__main__":
    main()
