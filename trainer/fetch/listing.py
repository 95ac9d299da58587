"""What the hub says of a model's files, and how a file is compared with it."""

import hashlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RemoteFile:
    name: str
    bytes: int
    digest: str
    """SHA-256 in hex for a large file, git's blob id for a small one."""


@dataclass(frozen=True)
class Listing:
    """The files of one model at one commit, as far as they are wanted."""

    id: str
    commit: str
    files: tuple[RemoteFile, ...]


def digest_of(path: Path, file: RemoteFile) -> str:
    """The digest of `path`, of the kind that `file` has."""
    if len(file.digest) == hashlib.sha256().digest_size * 2:
        with open(path, "rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    content = path.read_bytes()
    # git's id of a blob
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
