"""Which files make the dataset, and in which order.

A folder or one file on the volume, or any fsspec URL. Files of folders: `.txt`, `.md`,
`.jsonl` (each also `.gz` and `.zst`) and `.parquet`, in subfolders too, hidden ones not.
"""

import hashlib
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from trainer.errors import RequestError, StepError

KINDS = {".txt": "text", ".md": "text", ".jsonl": "jsonl", ".parquet": "parquet"}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}


class Source(NamedTuple):
    """One file of the dataset."""

    path: str  # below the dataset, with '/'
    location: str  # where it is read: absolute path or URL
    size: int  # bytes as stored
    stamp: str  # changes when the file does; empty where nothing tells
    modified_ns: int  # 0: not known
    kind: str  # text, jsonl, parquet, tokens
    compression: str = ""  # gzip, zstd
    remote: bool = False

    @property
    def streamed(self) -> bool:
        """Whether it is read from its beginning only."""
        return self.remote or bool(self.compression)


def list_sources(volume: str, dataset: str) -> list[Source]:
    """The dataset's files, by path compared as bytes.

    Raises:
        RequestError: It is missing, or has no file that can be read.
        StepError: A listing failed; it names the object.
    """
    # Not above: processes that only read sources do without pydantic, half of their start.
    from trainer.volume_paths import is_url, path_on_volume

    if is_url(dataset):
        found = list(_remote(dataset))
    else:
        found = list(_local(path_on_volume(volume, "dataset", dataset), dataset))
    if not found:
        raise RequestError(
            f"dataset has no file to read (got {dataset!r}). "
            "Files are .txt, .md and .jsonl, each also as .gz or .zst, and .parquet. "
            "Put at least one there."
        )
    return sorted(found, key=lambda source: os.fsencode(source.path))


def _local(root: Path, dataset: str) -> Iterator[Source]:
    if not root.exists():
        raise RequestError(
            f"dataset is not there (got {dataset!r}). It is looked for at {root}. "
            "Put your text files into that folder, or name another."
        )
    if root.is_file():
        plain = "tokens" if root.suffix == ".tokens" else "text"
        kind = _kind(root.name) or (plain, "")
        yield _local_source(root.name, str(root), root.stat(), *kind)
        return
    yield from _walk(str(root), "", set())


def _walk(folder: str, below: str, above: set[tuple[int, int]]) -> Iterator[Source]:
    """Files under `folder`; `above` holds its parents, so that a link to one ends there."""
    status = os.stat(folder)
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise StepError(f"{folder} can't be listed: {error.strerror}.") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(entry.path, f"{below}{entry.name}/", above | {identity})
        elif kind := _kind(entry.name):
            yield _local_source(below + entry.name, entry.path, _status(entry, below), *kind)


def _status(entry: os.DirEntry[str], below: str) -> os.stat_result:
    try:
        status = entry.stat()
    except OSError as error:
        if not entry.is_symlink():
            raise StepError(f"{entry.path} can't be read: {error.strerror}.") from error
        raise RequestError(
            f"dataset file {below}{entry.name} is a link that leads nowhere "
            f"(got {os.readlink(entry.path)!r}). Mend it, or take it out of the dataset."
        ) from error
    if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for a writer for ever
        raise RequestError(
            f"dataset file {below}{entry.name} is a pipe, socket or device. "
            "Only ordinary files are read. Take it out of the dataset."
        )
    return status


def _local_source(
    path: str, location: str, status: os.stat_result, kind: str, compression: str
) -> Source:
    stamp = f"{status.st_size}-{status.st_mtime_ns}-{status.st_ino}"
    modified_ns = status.st_mtime_ns
    return Source(path, location, status.st_size, stamp, modified_ns, kind, compression)


def _kind(name: str) -> tuple[str, str] | None:
    """Kind and compression that a file's name tells, or None for one that is not read."""
    stem, suffix = os.path.splitext(name.lower())
    compression = COMPRESSIONS.get(suffix, "")
    if compression:
        suffix = os.path.splitext(stem)[1]
    kind = KINDS.get(suffix)
    if kind is None or (compression and kind == "parquet"):
        return None
    return kind, compression


def _remote(dataset: str) -> Iterator[Source]:
    import fsspec

    try:
        filesystem, root = fsspec.core.url_to_fs(dataset)
        # A listing that was remembered would hide what changed since.
        filesystem.invalidate_cache()
        single = filesystem.isfile(root)
        found = {root: filesystem.info(root)} if single else filesystem.find(root, detail=True)
    except (ImportError, ValueError) as error:
        raise RequestError(f"dataset can't be read (got {dataset!r}). {error}.") from error
    except store_errors() as error:
        raise StepError(f"{dataset} can't be listed: {error}") from error
    for location, info in found.items():
        path = os.path.basename(location) if single else location[len(root) :].lstrip("/")
        kind = _kind(path) or (("text", "") if single else None)
        if kind and not any(part.startswith(".") for part in path.split("/")):
            stamp = remote_stamp(info)
            url = filesystem.unstrip_protocol(location)
            yield Source(path, url, int(info["size"] or 0), stamp, 0, kind[0], kind[1], True)


def recall(dataset: str, sources: Iterable[Source]) -> None:
    """Have s3 open files as in the process that listed them, without a request for each.

    It reads them with the ETag of the listing then, so one that changed since is refused.
    """
    import fsspec

    filesystem, _ = fsspec.core.url_to_fs(dataset)
    if "s3" not in filesystem.protocol:
        return  # another store says by itself what it needs to open a file
    folders: dict[str, list[dict[str, Any]]] = {}
    for source in sources:
        name = filesystem._strip_protocol(source.location)
        etag = source.stamp.partition("-")[2]
        info = {"name": name, "type": "file", "size": source.size, "ETag": etag}
        folders.setdefault(name.rpartition("/")[0], []).append(info)
    for folder, infos in folders.items():
        filesystem.dircache[folder] = infos


def store_errors() -> tuple[type[Exception], ...]:
    """What listing and reading fail with: of s3, without credentials, it is no OSError."""
    loaded = sys.modules.get("botocore.exceptions")  # where s3 was spoken
    return (OSError, loaded.BotoCoreError) if loaded else (OSError,)


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
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(location)
    filesystem.invalidate_cache()
    return remote_stamp(filesystem.info(path))


def open_source(location: str, remote: bool) -> BinaryIO:
    """The file's bytes as they are stored; read errors name the object by `reading`."""
    if not remote:
        return open(location, "rb", buffering=0)
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(location)
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
