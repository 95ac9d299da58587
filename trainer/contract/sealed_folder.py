"""Seal a folder with a manifest of digests, and tell whether a sealed folder is intact.

A folder is written beside its place, every file synced; `manifest.json` comes last
and one rename puts the folder in place. `verify` alone decides what is complete.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from trainer.contract.errors import DamagedError
from trainer.contract.files import give_mode, sync, write_atomically
from trainer.contract.json_text import parse_json

MANIFEST = "manifest.json"
FORMAT = 2
_READ_BYTES = 2**20
# `known` records may be of either kind; what users see of a final model stays sha256.
_DIGESTS: dict[str, Callable[[], Any]] = {"sha256": hashlib.sha256, "xxh3_128": xxhash.xxh3_128}


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a sealed folder holds: `files` maps a path to its bytes and its digest."""

    files: dict[str, dict[str, Any]]
    about: dict[str, Any]

    @property
    def digest(self) -> str:
        """One digest for all files of a final model."""
        lines = [f"{self.files[name]['sha256']}  {name}\n" for name in sorted(self.files)]
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def file_record(path: Path, kind: str = "sha256") -> dict[str, Any]:
    """Size and digest of a file, as a manifest holds them."""
    digest, size, block = _DIGESTS[kind](), 0, memoryview(bytearray(_READ_BYTES))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(block[:count])
            size += count
    return {"bytes": size, kind: digest.hexdigest()}


def seal(
    folder: Path,
    place: Path,
    about: Mapping[str, Any],
    known: Mapping[str, dict[str, Any]] | None = None,
) -> Manifest:
    """Write the manifest of `folder`, then rename it to `place`.

    Args:
        folder: Written beside `place`; files not in `known` are read and synced here.
        place: Must not exist.
        about: What the manifest says besides the files.
        known: Records of files that were digested and synced as they were written.
    """
    files = dict(known or {})
    for path in _files(folder):
        give_mode(path)
        name = path.relative_to(folder).as_posix()
        if name not in files:
            files[name] = file_record(path)
            sync(path)
    for inner in [p for p in folder.rglob("*") if p.is_dir()]:
        sync(inner)
    manifest = Manifest(files=files, about=dict(about))
    content = {"format": FORMAT, **manifest.about, "files": dict(sorted(files.items()))}
    content["manifest_sha256"] = _digest_of(content)
    write_atomically(folder / MANIFEST, json.dumps(content, indent=1))
    folder.rename(place)
    sync(place.parent)
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a sealed folder; says nothing about its files.

    Raises:
        DamagedError: There is none, or it can't be read.
    """
    try:
        content = parse_json((folder / MANIFEST).read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise DamagedError(f"{folder.name}/{MANIFEST} has a format this version can't read")
        if content.pop("manifest_sha256") != _digest_of(content):
            raise DamagedError(f"{folder.name}/{MANIFEST} was altered: its digest is not its own")
        del content["format"]
        files = content.pop("files")
    except FileNotFoundError as error:
        raise DamagedError(f"{folder.name} has no {MANIFEST}: it was never completed") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(f"{folder.name}/{MANIFEST} can't be read ({error})") from error
    return Manifest(files=files, about=content)


def verify(folder: Path) -> list[str]:
    """What is wrong with a sealed folder: one sentence each, none when it is intact.

    Args:
        folder: A checkpoint, or a final model.
    """
    try:
        manifest = read_manifest(folder)
    except DamagedError as error:
        return [str(error)]
    there = {path.relative_to(folder).as_posix() for path in _files(folder)}
    problems = [f"{folder.name}/{name} is missing" for name in sorted({*manifest.files} - there)]
    problems += [
        f"{folder.name}/{name} does not belong there" for name in sorted(there - {*manifest.files})
    ]
    for name in sorted(there & {*manifest.files}):
        expected = manifest.files[name]
        try:
            problems += _problems_of(folder, name, expected)
        except OSError as error:
            problems.append(f"{folder.name}/{name} can't be read ({error.strerror})")
    return problems


def _problems_of(folder: Path, name: str, expected: Mapping[str, Any]) -> Iterator[str]:
    size = (folder / name).stat().st_size
    if size != expected["bytes"]:
        yield f"{folder.name}/{name} has {size} bytes instead of {expected['bytes']}"
    elif not _has_digest(folder / name, expected):
        yield f"{folder.name}/{name} was altered: its digest is not the manifest's"


def is_complete(folder: Path) -> bool:
    """Whether `folder` is sealed and intact."""
    return not verify(folder)


def _has_digest(path: Path, expected: Mapping[str, Any]) -> bool:
    kind = next((name for name in expected if name in _DIGESTS), None)
    return kind is not None and file_record(path, kind) == expected


def _digest_of(content: Mapping[str, Any]) -> str:
    """Of what a manifest says, however it is laid out."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
