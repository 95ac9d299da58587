"""How much room a folder takes."""

import contextlib
import os
from pathlib import Path


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder; others may write, rename and delete there meanwhile."""
    size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                size += os.stat(os.path.join(place, name)).st_size
    return size
