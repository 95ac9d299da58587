"""Places on the volume: what a parameter may name there, and what is read from elsewhere."""

import os
import re
from pathlib import Path

from trainer.contract.errors import RequestError

URL = re.compile(r"^[a-z][a-z0-9+.-]*(::|://)")
MOST_NAME_BYTES, MOST_PATH_BYTES = 255, 4095
"""Of a name and of a path. Source: NAME_MAX and PATH_MAX of Linux, in limits.h."""


def is_url(path: str) -> bool:
    """Whether a dataset is to be read through fsspec rather than from the volume."""
    return URL.match(path) is not None


def leads_out(volume: str | Path, path: str | Path) -> bool:
    """Whether `path`, an absolute one that is about to be read, is outside of the volume.

    Every link that a step follows is decided here: those of parameters, of datasets and of
    models' folders. Links within the volume work.
    """
    return not Path(path).resolve().is_relative_to(Path(volume).resolve())


def refuse_links_out(volume: str | Path, name: str, folder: Path) -> None:
    """Raise RequestError where a link in `folder`, of parameter `name`, leads out of the volume.

    A link that was unpacked with other files could put a private key into a served model.
    """
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() and leads_out(volume, path):
            raise RequestError(
                f"{name} has a file that is a link out of the volume (got "
                f"{path.relative_to(folder)}, which leads to {str(path.readlink())!r}). Only files "
                "on the volume are read. Put a copy in its place."
            )


def path_on_volume(volume: str | Path, name: str, path: str) -> Path:
    """The place of `path`, which parameter `name` holds, on the volume.

    Args:
        volume: The volume's root.
        name: The parameter's name, for the error.
        path: Relative to the root; need not exist.
    Raises:
        RequestError: It is absolute or leads out of the volume, by `..` or a symlink.
    """
    if not can_be_a_path(path):
        raise RequestError(
            f"{name} is no path (got {shortened(path)!r}). A name in it may have "
            f"{MOST_NAME_BYTES} bytes, all of it {MOST_PATH_BYTES}, and no zero byte."
        )
    root = Path(volume).resolve()
    if Path(path).is_absolute() or ".." in Path(path).parts or leads_out(root, root / path):
        raise RequestError(
            f"{name} leads out of the volume (got {path!r}). "
            f"Paths are relative to {root}, without '..' and links that leave it."
        )
    return root / path


def can_be_a_path(path: str) -> bool:
    """Whether the file system takes `path`: without asking it, so that no error names all of it."""
    try:
        as_bytes = os.fsencode(path)
    except UnicodeEncodeError:  # half of a pair of surrogates
        return False
    longest = max(map(len, as_bytes.split(b"/")))
    return b"\0" not in as_bytes and longest <= MOST_NAME_BYTES and len(as_bytes) <= MOST_PATH_BYTES


def shortened(text: str, most: int = 100) -> str:
    """A text that may be long, for a message."""
    return text if len(text) <= most else f"{text[: most - 20]}... ({len(text):,} characters)"


def place_of(volume: str | Path, name: str, uri: str) -> str:
    """Where the file is that parameter `name` holds: a URL as it is, else a path on the volume."""
    return uri if is_url(uri) or not uri else str(path_on_volume(volume, name, uri))
