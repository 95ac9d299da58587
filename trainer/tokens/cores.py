"""How many cores this process may use: those it may run on, and of them what its container gets."""

import contextlib
import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


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
