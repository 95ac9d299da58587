"""How long training stands still for a checkpoint, and how long until it is sealed.

Run: `python -m benchmarks.training_checkpoints [--millions 20] [--rounds 15]`.
The stall is compared with copying the same state in memory, the time until sealed (from the
beginning of the stall) with writing and syncing the same bytes in one file. Medians of rounds
that take turns; the first stall, for which nothing is warm yet, stands alone.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.ratios import say_ratio
from trainer.contract.topics import CheckpointsConfig
from trainer.training.engine.partitions import KINDS, Slice
from trainer.training.save.saving import Saver

SLICES = 24


def make_slices(millions: float) -> list[Slice]:
    numel = int(millions * 1e6 / SLICES)
    return [
        Slice(f"layer.{n}.weight", 0, numel, (numel,), {k: torch.randn(numel) for k in KINDS})
        for n in range(SLICES)
    ]


def write_and_sync(path: Path, tensors: list[torch.Tensor]) -> float:
    began = time.perf_counter()
    with open(path, "wb", buffering=0) as file:
        for tensor in tensors:
            file.write(memoryview(tensor.numpy()).cast("B"))
        os.fsync(file.fileno())
    seconds = time.perf_counter() - began
    path.unlink()
    return seconds


def measure(root: Path, slices: list[Slice], rounds: int) -> Iterator[dict[str, float]]:
    """Seconds of copy, write, stall and seal, round by round."""
    tensors = [piece.tensors[kind] for piece in slices for kind in KINDS]
    copies = [torch.zeros_like(tensor) for tensor in tensors]
    (root / "checkpoints").mkdir()
    saver = Saver(root / "checkpoints", slices, 0, 1, CheckpointsConfig(keep_last=1))
    time.sleep(1)  # as training would take until its first save
    for number in range(rounds + 1):
        began = time.perf_counter()
        torch._foreach_copy_(copies, tensors)
        copied = time.perf_counter() - began
        written = write_and_sync(root / "plain", tensors)
        began = time.perf_counter()
        saver.save(number, {"step": number})
        stalled = time.perf_counter() - began
        saver.wait()
        yield {"copy": copied, "stall": stalled, "write": written, "seal": saver.seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--millions", type=float, default=20, help="parameters, in millions")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--folder", type=Path, default=None, help="on the volume to measure")
    args = parser.parse_args()
    slices = make_slices(args.millions)
    root = Path(tempfile.mkdtemp(dir=args.folder))
    try:
        first, *warm = measure(root, slices, args.rounds)
    finally:
        shutil.rmtree(root)
    seconds = {name: statistics.median(r[name] for r in warm) for name in first}
    ratios = {
        "stall_over_copy": round(seconds["stall"] / seconds["copy"], 2),
        "first_stall_over_copy": round(first["stall"] / seconds["copy"], 2),
        "seal_over_write": round(seconds["seal"] / seconds["write"], 2),
    }
    mib = sum(p.tensors[kind].nbytes for p in slices for kind in KINDS) / 2**20
    seconds = {name: round(value, 4) for name, value in seconds.items()}
    print(json.dumps({"mib": round(mib), "seconds": seconds, **ratios, "cores": os.cpu_count()}))
    for name, ratio in ratios.items():
        say_ratio(f"checkpoint, {name.replace('_', ' ')}", ratio, higher=False)


if __name__ == "__main__":
    main()
