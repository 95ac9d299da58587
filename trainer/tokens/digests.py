"""The SHA-256 of every source file, remembered by size, mtime and inode.

The memory is one small JSON file for each dataset under `cache/`; without it, or for
files it can't vouch for, the files are read, on all cores.
"""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from trainer.errors import StepError
from trainer.outcome import write_atomically
from trainer.tokens.sources import Source, open_source

_READ_BYTES = 1 << 20
_TOO_YOUNG_NS = 50_000_000
"""A file changed this short before it was read may change again with the same mtime."""


class DigestMemory:
    """Digests of the files that were read before, by location."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, list[str]] = {}
        self._files: dict[str, str] = {}
        # A memory that is gone or damaged costs time alone.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            read = json.loads(path.read_text(encoding="utf-8"))
            self.known, self._files = dict(read["sources"]), dict(read["stores"])

    def of(self, sources: Iterable[Source], paranoid: bool = False) -> list[str]:
        """The digest of each source, in hex; reads those that are new or changed.

        Args:
            sources: The dataset's files.
            paranoid: Read all of them, whatever the memory holds.
        Raises:
            StepError: A file can't be read; it is named.
        """
        sources = list(sources)
        fresh = [s for s in sources if paranoid or not self._vouches(s)]
        if fresh:
            started_ns = time.time_ns()
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                digests = dict(zip(fresh, pool.map(source_digest, fresh), strict=True))
            for source, digest in digests.items():
                young = started_ns - source.modified_ns < _TOO_YOUNG_NS
                self.known[source.location] = ["" if young else source.stamp, digest]
            self.known = {s.location: self.known[s.location] for s in sources}
            self._write()
        return [self.known[source.location][1] for source in sources]

    def knows(self, path: Path) -> bool:
        """Whether a store's file is as it was when it was made or last verified."""
        return self._files.get(str(path)) == _file_stamp(path)

    def vouch_for(self, paths: Iterable[Path]) -> None:
        """Remember files of a store that was just made or verified."""
        stamps = {str(path): _file_stamp(path) for path in paths}
        if any(self._files.get(path) != stamp for path, stamp in stamps.items()):
            # Of each dataset the newest few stores are enough.
            self._files = dict([*self._files.items(), *stamps.items()][-64:])
            self._write()

    def _write(self) -> None:
        write_atomically(self.path, json.dumps({"sources": self.known, "stores": self._files}))

    def _vouches(self, source: Source) -> bool:
        stamp = self.known.get(source.location, [""])[0]
        return bool(stamp) and stamp == source.stamp


def source_digest(source: Source) -> str:
    """SHA-256 of the file as it is stored; raises StepError with its name."""
    digest = hashlib.sha256()
    try:
        with open_source(source.location, source.remote) as file:
            while block := file.read(_READ_BYTES):
                digest.update(block)
    except OSError as error:
        raise StepError(f"{source.location} can't be read: {error}") from error
    return digest.hexdigest()


def _file_stamp(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ino}"
