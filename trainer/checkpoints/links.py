"""One file under two names: what a second folder of the same sealed files costs nothing by."""

import os
import shutil
from pathlib import Path


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Have the file at `target` too: by a hard link, or a copy where the volume has none.

    Both names may be one file then. It is safe because a sealed file is never written to
    again, in checkpoints as in `final/`: what is damaged is replaced, not edited.

    Args:
        source: A file of a sealed folder.
        target: Must not exist.
    """
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:  # a volume without hard links
        shutil.copyfile(source, target)
