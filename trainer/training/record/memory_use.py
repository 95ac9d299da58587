"""How much memory a training process holds at its peak, as a plan counts it.

Of the host: this process' own pages, and mapped files once on each node. So it is what a
container's limit counts, but for the page cache, which the system drops when it needs room.
"""

from pathlib import Path

import psutil
import torch

from trainer.planning.memory_model import GIB

_PROC = Path("/proc/self")
_RESET_PEAK = "5"  # to clear_refs: the kernel begins its note of the peak anew; man 5 proc


class HostPeak:
    """Most of the host's memory that this process held since it was last asked."""

    def __init__(self, counts_libraries: bool) -> None:
        """Look at what is mapped before training begins.

        Args:
            counts_libraries: Whether the pages of files count, which the processes of a node
                share: one of them counts them.
        """
        self._libraries = _status().get("RssFile", 0) if counts_libraries else 0

    def gib(self) -> float:
        """GiB since the last call; the first time, since the process began."""
        kib = _status()
        if not kib:  # not Linux
            return psutil.Process().memory_info().rss / GIB
        # Pages of the token store are mapped as training reads them: page cache, not counted.
        own = kib["VmHWM"] - kib["RssFile"]
        _forget_peak()
        return 1024 * (own + self._libraries) / GIB


def gpu_peak_gib() -> float | None:
    """Most of this process' GPU that tensors took since the last call; None without one.

    Without CUDA's own part, and without what the allocator keeps besides.
    """
    if not torch.cuda.is_available():
        return None
    peak = torch.cuda.max_memory_allocated() / GIB
    torch.cuda.reset_peak_memory_stats()
    return peak


def _status() -> dict[str, int]:
    """KiB by name; empty where there is no /proc."""
    try:
        text = (_PROC / "status").read_text(encoding="utf-8")
    except OSError:
        return {}
    lines = (line.split() for line in text.splitlines() if line.endswith(" kB"))
    return {name.rstrip(":"): int(number) for name, number, _ in lines}


def _forget_peak() -> None:
    try:
        (_PROC / "clear_refs").write_text(_RESET_PEAK, encoding="utf-8")
    except OSError:
        return  # a sandbox without it: the peak is that of the process' life then
