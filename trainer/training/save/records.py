"""The run's growing files: metrics.jsonl, samples.jsonl, skipped.jsonl.

A checkpoint says how long each was; going on from it cuts them back to that, so that
every step stands there once, however often the run was stopped.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.contract.files import make_way
from trainer.training.save.retrying import append

NAMES = ("metrics.jsonl", "samples.jsonl", "skipped.jsonl")
# Fields of metrics.jsonl that are measured of the machine: all others are the same when a
# run is done again.
MEASURED = frozenset(
    "tokens_per_second seconds data_wait_share checkpoint_wait_share host_memory_gib "
    "gpu_memory_gib flops_per_second peak_share".split()
)


def cut_back(run: Path, sizes: Mapping[str, int]) -> list[str]:
    """Cut each file to what it held at a checkpoint; return what is shorter than that.

    Args:
        run: The run's folder.
        sizes: Bytes by file name; a file that is not named is emptied.
    """
    short = []
    for name in NAMES:
        path, size = run / name, sizes.get(name, 0)
        make_way(path)
        there = path.stat().st_size if path.exists() else 0
        if there < size:
            short.append(f"{name} has {there} bytes, had {size} at the checkpoint: lines are lost")
        elif there > size:
            os.truncate(path, size)
    return short


class Records:
    """Appends to the files, each line at once."""

    def __init__(self, run: Path) -> None:
        self._files = {name: open(run / name, "ab", buffering=0) for name in NAMES}  # noqa: SIM115

    def add(self, name: str, line: Mapping[str, Any]) -> None:
        # Python writes the shortest decimals that read back as the same float.
        text = json.dumps(line).encode() + b"\n"
        append(self._files[name], text, name)  # half a line is cut off when the run resumes

    def synced_sizes(self) -> dict[str, int]:
        """Bytes of each file, all of which would survive a power cut."""
        for file in self._files.values():
            os.fsync(file.fileno())
        return {name: os.fstat(file.fileno()).st_size for name, file in self._files.items()}

    def close(self) -> None:
        for file in self._files.values():
            file.close()
