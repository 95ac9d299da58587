"""The SHA-256 of every source file, remembered by size, mtime, ctime and inode.

A program can set a file's mtime back, as rsync and tar do. It can't set back its ctime.

The memory is one small JSON file for each dataset under `cache/`; without it, or for
files it can't vouch for, the files are read, on all cores. What is not UTF-8, or no
JSON, is found there, before anything is encoded. A remote file is read once: its bytes
are kept until the store is made.
"""

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import IO, Annotated, BinaryIO

from annotated_types import Len
from typing_extensions import TypedDict

from trainer.contract.addresses import without_query
from trainer.contract.errors import StepError
from trainer.contract.files import write_atomically, writer_name
from trainer.contract.json_files import readable_object
from trainer.devices import available_cores
from trainer.tokens.chat.records import shape_of_line
from trainer.tokens.encode.progress import Progress
from trainer.tokens.text.documents import whole_part
from trainer.tokens.text.reading import valid_blocks, without_mark
from trainer.tokens.text.records import check_lines
from trainer.tokens.text.remote import store_errors
from trainer.tokens.text.sources import (
    Source,
    current_stamp,
    file_stamp,
    open_source,
    remote_stamp,
    shown,
)

_READ_BYTES = 1 << 20
_GROUP_FILES = 16
_POLL_SECONDS = 0.2
_TOO_YOUNG_NS = 50_000_000
"""A file changed this short before it was read may change again with the same mtime."""


class _Memory(TypedDict):
    sources: dict[str, Annotated[list[str], Len(2, 2)]]
    stores: dict[str, str]


class DigestMemory:
    """Digests of the files that were read before, by location."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, list[str]] = {}
        self._files: dict[str, str] = {}
        # A memory that is gone or damaged costs time alone.
        if read := readable_object(path, _Memory):
            self.known, self._files = read["sources"], read["stores"]

    def of(
        self,
        sources: Iterable[Source],
        copies: Path,
        text_field: str,
        paranoid: bool = False,
        listed_before: bool = False,
        shape: str = "",
    ) -> list[str]:
        """The digest of each source, in hex; reads those that are new or changed.

        Args:
            sources: The dataset's files.
            copies: Folder for the bytes of remote files; see `nearest`.
            text_field: Key of the text in JSONL.
            paranoid: Read all of them, whatever the memory holds.
            listed_before: By another step: a remote file may have changed since.
            shape: Of the records, see `data.shape`; those of turns are checked when they are read.
        Raises:
            RequestError: A text file is not UTF-8, or a line of JSONL no JSON with text; it
                is named, with the place.
            StepError: A file can't be read, or changed since it was listed; it is named.
        """
        sources = list(sources)
        fresh = [s for s in sources if paranoid or not self._vouches(s)]
        if fresh:
            started_ns = time.time_ns()
            reading = Reading(fresh, copies, text_field, listed_before, shape)
            for source, digest in zip(fresh, reading.digests(), strict=True):
                young = started_ns - source.modified_ns < _TOO_YOUNG_NS
                self.known[_key(source)] = ["" if young else source.stamp, digest]
            self.known = {_key(s): self.known[_key(s)] for s in sources}
            self._write()
        return [self.known[_key(source)][1] for source in sources]

    def unread_bytes(self, sources: Iterable[Source], paranoid: bool) -> int:
        """How many bytes `of` would read."""
        return sum(s.size for s in sources if paranoid or not self._vouches(s))

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
        stamp = self.known.get(_key(source), [""])[0]
        return bool(stamp) and stamp == source.stamp


def _key(source: Source) -> str:
    """Its location. Of a query string, which may hold a signature, there is a digest alone."""
    named = without_query(source.location)
    if named == source.location:
        return named
    return f"{named} {hashlib.sha256(source.location.encode()).hexdigest()[:16]}"


class Reading:
    """Reads files on all cores, for their digests."""

    def __init__(
        self,
        sources: list[Source],
        copies: Path,
        text_field: str,
        listed_before: bool,
        shape: str = "",
    ) -> None:
        self.sources, self.copies, self.text_field = sources, copies, text_field
        self._shape = shape
        self._listed_before = listed_before
        self._done_bytes = 0
        self._lock, self._stop = threading.Lock(), threading.Event()

    def digests(self) -> list[str]:
        """SHA-256 of each file as it is stored; raises StepError with a file's name."""
        if any(source.remote for source in self.sources):
            self.copies.mkdir(parents=True, exist_ok=True)
        progress = Progress("digest", sum(source.size for source in self.sources))
        groups = [
            self.sources[at : at + _GROUP_FILES] for at in range(0, len(self.sources), _GROUP_FILES)
        ]
        with ThreadPoolExecutor(available_cores()) as pool:
            reading = [pool.submit(self._group, group) for group in groups]
            left = set(reading)
            try:
                while left:  # woken now and then, so that a signal ends it at once
                    done, left = wait(left, _POLL_SECONDS)
                    for group in done:
                        group.result()
                    progress.reach(self._done_bytes)
            finally:
                self._stop.set()
        return [digest for group in reading for digest in group.result()]

    def _group(self, sources: list[Source]) -> list[str]:
        return [self._digest(source) for source in sources]

    def _digest(self, source: Source) -> str:
        digest = hashlib.sha256()
        beside = self.copies / f".{writer_name()}-{threading.get_ident()}"
        with open(beside, "wb") if source.remote else contextlib.nullcontext() as copy:
            blocks = self._blocks(source, digest, copy)
            part = whole_part(source, "", self.text_field)
            if source.kind in ("text", "jsonl") and not source.compression:
                blocks = valid_blocks(blocks, part)
            if source.kind == "jsonl" and not source.compression:
                check_lines(without_mark(blocks, part), part, self._is_text)
            for _ in blocks:
                pass
        if source.remote and not self._stop.is_set():
            os.replace(beside, self.copies / digest.hexdigest())
        return digest.hexdigest()

    def _is_text(self, line: bytes) -> bool:
        """Whether a file's records are texts, by its first one."""
        return (self._shape or shape_of_line(line, self.text_field)) == "text"

    def _blocks(self, source: Source, digest: "hashlib._Hash", copy: IO | None) -> Iterator[bytes]:
        """A file's blocks, while they are counted, hashed and copied."""
        try:
            with open_source(source.location, source.remote) as file:
                if self._listed_before and source.remote:
                    _refuse_changed(source, file)
                # No larger than the file: making room for a block takes longer than a small one.
                block_bytes = min(_READ_BYTES, source.size + 1)
                while not self._stop.is_set() and (block := file.read(block_bytes)):
                    digest.update(block)
                    if copy:
                        copy.write(block)
                    with self._lock:
                        self._done_bytes += len(block)
                    yield block
        except store_errors() as error:
            raise StepError(f"{shown(source.location)} can't be read: {error}") from error


def _refuse_changed(source: Source, file: BinaryIO) -> None:
    # What a store said of a file when it was opened is as new as can be, and costs no request.
    details = getattr(file, "details", None)
    now = remote_stamp(details) if details else current_stamp(source.location, source.remote)
    if now != source.stamp:
        raise StepError(f"{shown(source.location)} has changed since it was listed.")


def nearest(source: Source, digest: str, copies: Path) -> Source:
    """Where a source is best read: a remote one from its copy, while there is one."""
    path = copies / digest
    if not source.remote or not path.is_file():
        return source
    return source._replace(location=str(path), remote=False, stamp=_file_stamp(path))


def _file_stamp(path: Path) -> str:
    status = path.stat()
    return file_stamp(status)
