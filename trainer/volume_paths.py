"""Places on the volume: what a parameter may name there, and what is read from elsewhere."""

import re
from pathlib import Path

from trainer.errors import RequestError

URL = re.compile(r"^[a-z][a-z0-9+.-]*(::|://)")


def is_url(path: str) -> bool:
    """Whether a dataset is to be read through fsspec rather than from the volume."""
    return URL.match(path) is not None


def path_on_volume(volume: str | Path, name: str, path: str) -> Path:
    """The place of `path`, which parameter `name` holds, on the volume.

    Args:
        volume: The volume's root.
        name: The parameter's name, for the error.
        path: Relative to the root; need not exist.
    Raises:
        RequestError: It is absolute or leads out of the volume, by `..` or a symlink.
    """
    root = Path(volume).resolve()
    resolved = (root / path).resolve()
    if Path(path).is_absolute() or ".." in Path(path).parts or not resolved.is_relative_to(root):
        raise RequestError(
            f"{name} leads out of the volume (got {path!r}). "
            f"Paths are relative to {root}, without '..' and links that leave it."
        )
    return root / path


def place_of(volume: str | Path, name: str, uri: str) -> str:
    """Where the file is that parameter `name` holds: a URL as it is, else a path on the volume."""
    return uri if is_url(uri) or not uri else str(path_on_volume(volume, name, uri))
