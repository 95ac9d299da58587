"""Which files make the dataset, and in which order.

A folder or one file on the volume, or any fsspec URL. Files of folders: `.txt`, `.md`,
`.jsonl` (each also `.gz` and `.zst`) and `.parquet`, in subfolders too, hidden ones not. `.json`
files are JSON arrays of chats or completions: read where those are asked for by name, or where
a folder has nothing else.
"""

import hashlib
import os
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from trainer.contract.addresses import masked
from trainer.contract.errors import RequestError, StepError
from trainer.object_store import filesystem_of
from trainer.tokens.text.unread_files import left_out_words, without_cards

ARRAY = "json"
KINDS = {".txt": "text", ".md": "text", ".jsonl": "jsonl", ".parquet": "parquet"}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
READ = "Files are .txt, .md and .jsonl, each also as .gz or .zst, and .parquet."
_TURNING = "\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


class Source(NamedTuple):
    """One file of the dataset."""

    path: str  # below the dataset, with '/'; as `shown` shows it
    location: str  # where it is read: absolute path or URL
    size: int  # bytes as stored
    stamp: str  # changes when the file does; empty where nothing tells
    modified_ns: int  # 0: not known
    kind: str  # text, jsonl, parquet, json, tokens
    compression: str = ""  # gzip, zstd
    remote: bool = False

    @property
    def streamed(self) -> bool:
        """Whether it is read from its beginning only."""
        return self.remote or bool(self.compression)


class SourceList(list[Source]):
    """The files that are read, and what is left out of the dataset."""

    def __init__(
        self, sources: Iterable[Source], left_out: dict[str, dict[str, Any]] | None = None
    ) -> None:
        super().__init__(sources)
        self.left_out = left_out or {}
        """Of each kind of file: how many `files`, and the `names` of some."""


def list_sources(volume: str, dataset: str, arrays: bool = False) -> SourceList:
    """The dataset's files, by path compared as bytes.

    Args:
        arrays: Read JSON arrays too; else only where a folder has nothing else to read.
    Raises:
        RequestError: It is missing, or has no file that can be read.
        StepError: A listing failed; it names the object.
    """
    # Not above: processes that only read sources do without pydantic, half of their start.
    from trainer.contract.volume import is_url, path_on_volume

    if is_url(dataset):
        from trainer.tokens.text.remote import remote_sources

        found = list(remote_sources(dataset))
    else:
        found = list(_local(path_on_volume(volume, "dataset", dataset), dataset, volume))
    found.sort(key=lambda source: _name_bytes(source))
    plain = [s._replace(kind="") if s.kind == ARRAY and not arrays else s for s in found]
    sources, left_out = without_cards(plain)
    if not sources:
        sources, left_out = without_cards(found)
    if not sources:
        but = f", with {left_out_words(left_out)}" if left_out else ""
        raise RequestError(
            f"dataset has no file to read (got {shown(dataset)!r}{but}). {READ} Put at least one "
            "there."
        )
    return SourceList(sources, left_out)


def _name_bytes(source: Source) -> bytes:
    """By what files are ordered: the path as the file system spells it."""
    return os.fsencode(source.path) if source.remote else os.fsencode(source.location)


def _local(root: Path, dataset: str, volume: str) -> Iterator[Source]:
    if not root.exists():
        raise RequestError(
            f"dataset is not there (got {dataset!r}). It is looked for at {root}. "
            "Put your text files into that folder, or name another."
        )
    if root.is_file():
        plain = "tokens" if root.suffix == ".tokens" else "text"
        kind = kind_of(root.name) or (plain, "")
        yield _local_source(root.name, str(root), root.stat(), *kind)
        return
    yield from _walk(str(root), "", set(), volume)


def _walk(folder: str, below: str, above: set[tuple[int, int]], volume: str) -> Iterator[Source]:
    """Files under `folder`; `above` holds its parents, so that a link to one ends there."""
    status = os.stat(folder)
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise StepError(f"{shown(folder)} can't be listed: {error.strerror}.") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        is_folder, kind = entry.is_dir(), kind_of(entry.name)
        if (is_folder or kind) and entry.is_symlink():
            _refuse_link_out(entry, below, volume)
        if is_folder:
            yield from _walk(entry.path, f"{below}{entry.name}/", above | {identity}, volume)
        elif kind:
            yield _local_source(below + entry.name, entry.path, _status(entry, below), *kind)
        elif (array := array_kind(entry.name)) and _is_own_file(entry, volume):
            yield _local_source(below + entry.name, entry.path, entry.stat(), *array)
        else:
            yield Source(shown(below + entry.name), entry.path, 0, "", 0, "")


def _is_own_file(entry: os.DirEntry[str], volume: str) -> bool:
    """Whether it is a file of the volume, and no link out of it."""
    from trainer.contract.volume import leads_out

    linked_out = entry.is_symlink() and leads_out(volume, entry.path)
    return entry.is_file() and not linked_out


def _refuse_link_out(entry: os.DirEntry[str], below: str, volume: str) -> None:
    from trainer.contract.volume import leads_out

    if leads_out(volume, entry.path):
        raise RequestError(
            f"dataset file {shown(below + entry.name)} is a link out of the volume (got "
            f"{shown(os.readlink(entry.path))!r}). Only files on the volume are read. Put a copy "
            "of it into the dataset, or take the link out."
        )


def _status(entry: os.DirEntry[str], below: str) -> os.stat_result:
    try:
        status = entry.stat()
    except OSError as error:
        if not entry.is_symlink():
            raise StepError(f"{shown(entry.path)} can't be read: {error.strerror}.") from error
        raise RequestError(
            f"dataset file {shown(below + entry.name)} is a link that leads nowhere "
            f"(got {shown(os.readlink(entry.path))!r}). Mend it, or take it out of the dataset."
        ) from error
    if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for a writer for ever
        raise RequestError(
            f"dataset file {shown(below + entry.name)} is a pipe, socket or device. "
            "Only ordinary files are read. Take it out of the dataset."
        )
    return status


def _local_source(
    path: str, location: str, status: os.stat_result, kind: str, compression: str
) -> Source:
    modified_ns = max(status.st_mtime_ns, status.st_ctime_ns)
    stamp = file_stamp(status)
    return Source(shown(path), location, status.st_size, stamp, modified_ns, kind, compression)


# --- names ------------------------------------------------------------------------------


def shown(name: str) -> str:
    """A file's name as it may be printed: bytes that are no UTF-8 and control characters escaped.

    Marks that turn the direction of writing are escaped too: they make one name look like
    another. Of an address, no query string is shown.
    """
    if "://" in name:
        name = masked(name)
    if name.isascii() and name.isprintable():
        return name
    return "".join(_shown(letter) for letter in name)


def _shown(letter: str) -> str:
    code = ord(letter)
    if 0xDC80 <= code <= 0xDCFF:  # as Python reads a byte that is no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    category = unicodedata.category(letter)
    if category in ("Cc", "Cs", "Zl", "Zp") or letter in _TURNING:
        return letter.encode("unicode_escape").decode()
    return letter


def file_stamp(status: os.stat_result) -> str:
    """What changes when a file of the volume does: ctime also where mtime was set back."""
    return f"{status.st_size}-{status.st_mtime_ns}-{status.st_ctime_ns}-{status.st_ino}"


def kind_of(name: str) -> tuple[str, str] | None:
    """Kind and compression that a file's name tells, or None for one that is not read."""
    stem, suffix = os.path.splitext(name.lower())
    compression = COMPRESSIONS.get(suffix, "")
    if compression:
        suffix = os.path.splitext(stem)[1]
    kind = KINDS.get(suffix)
    if kind is None or (compression and kind == "parquet"):
        return None
    return kind, compression


def array_kind(name: str) -> tuple[str, str] | None:
    """Likewise, of a JSON array."""
    stem, suffix = os.path.splitext(name.lower())
    compression = COMPRESSIONS.get(suffix, "")
    suffix = os.path.splitext(stem)[1] if compression else suffix
    return (ARRAY, compression) if suffix == ".json" else None


def remote_stamp(info: Mapping[str, Any]) -> str:
    """The stamp of a file from what its store says of it; see Source."""
    for name in ("ETag", "etag", "md5Hash", "LastModified", "mtime", "modified"):
        if info.get(name):
            return f"{info['size']}-{info[name]}"
    return ""


def current_stamp(location: str, remote: bool) -> str:
    """The stamp of a file as it is now; see Source."""
    if not remote:
        return _local_source("", location, os.stat(location), "", "").stamp
    filesystem, path = filesystem_of(location)
    filesystem.invalidate_cache()
    return remote_stamp(filesystem.info(path))


def open_source(location: str, remote: bool) -> BinaryIO:
    """The file's bytes as they are stored; read errors name the object by `reading`."""
    if not remote:
        return open(location, "rb", buffering=0)
    filesystem, path = filesystem_of(location)
    # One block read ahead: a stream needs no more, and memory is bounded by it.
    return filesystem.open(path, "rb", block_size=8 << 20, cache_type="readahead")


def in_order(sources: list[Source], reorder: str, seed: int) -> list[Source]:
    """`sources`, listed by path, in the order of the stream."""
    if reorder == "name_descending":
        return sources[::-1]
    if reorder == "size_ascending":
        return sorted(sources, key=lambda source: source.size)
    if reorder == "size_descending":
        return sorted(sources, key=lambda source: -source.size)
    if reorder == "random":
        return sorted(sources, key=lambda source: _drawn(seed, source.path))
    return sources


def _drawn(seed: int, path: str) -> bytes:
    """A file's place in the order of `seed`: its own, whichever other files there are."""
    return hashlib.blake2b(os.fsencode(path), digest_size=16, key=str(seed).encode()).digest()
