"""What this machine computes with: the GPUs that torch can use, and the cores of this process.

This is the one place that decides the accelerator.

A build of torch for CPUs alone answers from its version file, at once. Any other is asked in a
process of its own, once: that works in Windows' Linux and with AMD's cards too, and leaves this
process without a CUDA context, and able to fork.
"""

import contextlib
import functools
import importlib.util
import math
import os
import runpy
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from trainer.contract.json_text import parse_json

_CGROUP = Path("/sys/fs/cgroup")
_ASK = """
import json, torch
found = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
bf16 = bool(found) and torch.cuda.is_bf16_supported()
print(json.dumps([[each.name, each.total_memory / 2**30, bf16] for each in found]))
"""
ASK_SECONDS = 120.0


@dataclass(frozen=True)
class Device:
    """One GPU."""

    name: str  # as its driver says
    memory_gib: float
    bf16: bool


@functools.cache
def devices() -> tuple[Device, ...]:
    """Every GPU that torch would use here; none where it is built for CPUs, or not installed."""
    if not torch_build():
        return ()
    try:
        asked = subprocess.run(
            [sys.executable, "-P", "-c", _ASK], capture_output=True, text=True, timeout=ASK_SECONDS
        )
        return tuple(Device(*each) for each in parse_json(asked.stdout.splitlines()[-1]))
    except (subprocess.TimeoutExpired, ValueError, IndexError):  # a driver that does not answer
        return ()


def has_gpu() -> bool:
    """Whether training and serving use a GPU here."""
    return bool(devices())


def torch_build() -> str:
    """What the installed torch is built for, as `CUDA 13.0`; '' for CPUs alone, or no torch."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return ""
    version = runpy.run_path(str(Path(spec.origin).with_name("version.py")))
    builds = (("CUDA", version.get("cuda")), ("ROCm", version.get("hip")))
    return next((f"{name} {number}" for name, number in builds if number), "")


def available_cores(cgroup: Path = _CGROUP) -> int:
    """Cores to keep busy, at least one.

    Args:
        cgroup: Where the limits of the process's container are, of either version.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = _quota(cgroup / "cpu.max") or _quota(
        cgroup / "cpu/cpu.cfs_quota_us", cgroup / "cpu/cpu.cfs_period_us"
    )
    # A node's other cores are there to be seen: more processes than the quota only wait.
    return max(1, min(cores, math.ceil(quota))) if quota else cores


def _quota(*files: Path) -> float:
    """Microseconds of processor time for each of wall time; 0: no limit, or none that is known."""
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        limit, period = " ".join(path.read_text() for path in files).split()
        return max(0.0, int(limit) / int(period))  # "max", and -1, are no limit
    return 0.0
