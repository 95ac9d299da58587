"""How long training stands still for a checkpoint, and how long until it is sealed.

Run: `python -m benchmarks.training_checkpoints [--millions 20] [--rounds 5]`.
The stall is compared with copying the same state in memory, the time until sealed with
writing and syncing the same bytes; both as the best of some rounds that take turns.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import torch

from trainer.config import CheckpointsConfig
from trainer.training.partitions import KINDS, Slice
from trainer.training.saving import Saver


def make_slices(millions: float, count: int = 24) -> list[Slice]:
    numel = int(millions * 1e6 / count)
    return [
        Slice(f"layer.{n}.weight", 0, numel, (numel,), {k: torch.randn(numel) for k in KINDS})
        for n in range(count)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--millions", type=float, default=20, help="parameters, in millions")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None, help="on the volume to measure")
    args = parser.parse_args()
    slices = make_slices(args.millions)
    tensors = [piece.tensors[kind] for piece in slices for kind in KINDS]
    copies = [torch.empty_like(tensor) for tensor in tensors]
    root = Path(tempfile.mkdtemp(dir=args.folder))
    best = {"copy": 1e9, "stall": 1e9, "write": 1e9, "seal": 1e9}
    try:
        saver = Saver(root / "checkpoints", slices, 0, 1, CheckpointsConfig(keep_last=1))
        (root / "checkpoints").mkdir()
        for number in range(args.rounds + 1):  # the first one makes the buffers
            began = time.perf_counter()
            torch._foreach_copy_(copies, tensors)
            copied = time.perf_counter() - began
            written = write_and_sync(root / "plain", tensors)
            began = time.perf_counter()
            saver.save(number, {"step": number})
            stalled = time.perf_counter() - began
            saver.wait()
            sealed = saver.seconds
            if number:
                found = {"copy": copied, "stall": stalled, "write": written, "seal": sealed}
                best = {name: min(best[name], value) for name, value in found.items()}
    finally:
        shutil.rmtree(root)
    ratios = {
        "stall_over_copy": round(best["stall"] / best["copy"], 2),
        "seal_over_write": round(best["seal"] / best["write"], 2),
    }
    mib = sum(t.nbytes for t in tensors) / 2**20
    print(json.dumps({"mib": round(mib), "seconds": best, **ratios, "cores": os.cpu_count()}))


if __name__ == "__main__":
    main()
