"""Write safetensors files with their digest in one pass, and read slices of them.

The format: 8 bytes of header length, a JSON header, the tensors' bytes.
Source: https://github.com/huggingface/safetensors#format
"""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from trainer.contract.json_text import parse_json

_WRITE_BYTES = 2**20  # digested, then written: small enough to be in the cache the second time
_READ_NUMBERS = 2**20  # widened to fp32 at a time
_SIZES = {"F32": 4, "BF16": 2, "F16": 2, "F64": 8}  # bytes, by safetensors' names
# What a checkpoint is written in: numbers are fp32, buffers also counters and masks.
_NUMPY = {"F32": "<f4", "F64": "<f8", "I64": "<i8", "I32": "<i4", "U8": "|u1", "BOOL": "|b1"}
_NAMES = {np.dtype(kind): name for name, kind in _NUMPY.items()}
_SYNC_BYTES = 16 * 2**20  # the disk begins with the first part while the next is written


def write_tensors(path: Path, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Write and sync arrays; return the file's size and digest.

    The digest is there to find damage, which needs no cryptography: XXH3 with 128 bits
    is nine times as fast as SHA-256, and a manifest that anybody may rewrite proves no more.

    Args:
        path: Must not exist.
        arrays: Flat, contiguous, by name; of a type in _NUMPY.
    """
    header: dict[str, Any] = {}
    offset = 0
    for name, array in arrays.items():
        header[name] = {
            "dtype": _NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    digest, size = xxhash.xxh3_128(), 0
    with open(path, "xb", buffering=0) as file, _SyncBehind(file.fileno()) as syncing:
        blocks: list[Any] = [len(text).to_bytes(8, "little") + text, *arrays.values()]
        for block in blocks:
            view = memoryview(block).cast("B")
            for start in range(0, len(view), _WRITE_BYTES):
                piece = view[start : start + _WRITE_BYTES]
                digest.update(piece)
                _write_all(file, piece)
                syncing.wrote(len(piece))
            size += len(view)
        os.fsync(file.fileno())
    return {"bytes": size, "xxh3_128": digest.hexdigest()}


class _SyncBehind:
    """Syncs a file now and then while it grows, from a thread, so that the end waits less."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._bytes = descriptor, 0
        self._syncer = ThreadPoolExecutor(1)
        self._syncing: Future[None] | None = None

    def __enter__(self) -> "_SyncBehind":
        return self

    def __exit__(self, *error: object) -> None:
        self._syncer.shutdown()

    def wrote(self, count: int) -> None:
        """Raises OSError where an earlier part could not be synced."""
        self._bytes += count
        if self._bytes < _SYNC_BYTES or (self._syncing is not None and not self._syncing.done()):
            return
        if self._syncing is not None:
            self._syncing.result()
        self._bytes = 0
        self._syncing = self._syncer.submit(os.fdatasync, self._descriptor)


def _write_all(file: Any, piece: memoryview) -> None:
    """Unbuffered writes may take less than they are given."""
    while piece:
        piece = piece[file.write(piece) :]


@dataclass(frozen=True)
class _Piece:
    """Where numbers `start` to `start + numel` of a parameter are, and how they are stored."""

    path: Path
    offset: int
    dtype: str
    start: int
    numel: int

    def read(self, first: int, out: np.ndarray) -> None:
        """Fill `out` with numbers `first`, `first` + 1, ... of the piece."""
        with open(self.path, "rb", buffering=0) as file:
            file.seek(self.offset + first * _SIZES[self.dtype])
            if self.dtype == "F32":
                _read_all(file, out.data.cast("B"))
                return
            for at in range(0, out.size, _READ_NUMBERS):
                part = out[at : at + _READ_NUMBERS]
                raw = bytearray(part.size * _SIZES[self.dtype])
                _read_all(file, memoryview(raw))
                part[:] = _widened(raw, self.dtype)


class SliceReader:
    """Reads any range of any parameter as fp32 from safetensors files, and nothing else of them.

    Of a checkpoint of any writer, or of a model's folder (`of_model`). What was read is
    in memory once: files are not mapped, whose pages would count beside it.
    """

    def __init__(self, folder: Path) -> None:
        self._pieces: dict[str, list[_Piece]] = {}
        for path in sorted(folder.glob("*.safetensors")):
            for key, piece, _ in _pieces_of(path):
                name, _, start = key.rpartition("@")
                self._pieces.setdefault(name, []).append(replace(piece, start=int(start)))

    @classmethod
    def of_model(
        cls,
        paths: Sequence[Path],
        shapes: Mapping[str, tuple[int, ...]],
        other_names: Mapping[str, str],
        buffers: Mapping[str, tuple[int, ...]],
    ) -> "SliceReader | None":
        """A reader of a model's weight files; None where they aren't these parameters'.

        Args:
            paths: The files that count: `trainer.fetch.weights.weight_files`.
            shapes: Of the parameters by name.
            other_names: Parameter names by what else the same numbers may be called (tied ones).
            buffers: Shapes of the persistent buffers by name.
        """
        reader = cls(Path())
        for path in paths:
            for key, piece, shape in _pieces_of(path):
                name = key if key in shapes else other_names.get(key, "")
                if shapes.get(name) == shape and piece.dtype in _SIZES:
                    reader._pieces[f"weight/{name}"] = [piece]
                if buffers.get(key) == shape and piece.dtype in {**_SIZES, **_NUMPY}:
                    reader._pieces[f"buffer/{key}"] = [piece]
        return reader if len(reader._pieces) == len(shapes) + len(buffers) else None

    def names(self, kind: str) -> list[str]:
        """The parameters of which there is a `kind`, such as `weight`."""
        return sorted(n.split("/", 1)[1] for n in self._pieces if n.startswith(f"{kind}/"))

    def numel(self, name: str) -> int:
        return sum(piece.numel for piece in self._pieces[name])

    def read(self, name: str, start: int, out: np.ndarray, whole: int | None = None) -> None:
        """Fill `out`, flat, with the numbers of `name` (kind/parameter) from `start` on.

        Args:
            whole: How many numbers `name` has to have; None: any.
        Raises:
            ValueError: It has others, or none there.
        """
        if whole is not None and name in self._pieces and self.numel(name) != whole:
            raise ValueError(f"{name} has {self.numel(name)} numbers instead of {whole}")
        stop, filled = start + out.size, 0
        for piece in self._pieces.get(name, ()):
            low, high = max(start, piece.start), min(stop, piece.start + piece.numel)
            if low < high:
                piece.read(low - piece.start, out[low - start : high - start])
                filled += high - low
        if filled != out.size:
            raise ValueError(f"{name} has {filled} of {out.size} numbers from {start} on")

    def buffer(self, name: str) -> np.ndarray:
        """A persistent buffer, flat, in the type it was written in; 16-bit floats become fp32.

        Raises:
            ValueError: There is none of this name.
        """
        pieces = self._pieces.get(f"buffer/{name}")
        if not pieces:
            raise ValueError(f"the buffer {name} is missing")
        [piece] = pieces
        if piece.dtype in ("BF16", "F16"):
            out = np.empty(piece.numel, np.float32)
            piece.read(0, out)
            return out
        raw = np.empty(piece.numel, _NUMPY[piece.dtype])
        with open(piece.path, "rb", buffering=0) as file:
            file.seek(piece.offset)
            _read_all(file, raw.view(np.uint8).data.cast("B"))
        return raw


def _pieces_of(path: Path) -> Iterator[tuple[str, _Piece, tuple[int, ...]]]:
    """The file's tensors: key, place and shape."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = parse_json(file.read(length))
    header.pop("__metadata__", None)
    for key, entry in header.items():
        shape = tuple(entry["shape"])
        offset = 8 + length + entry["data_offsets"][0]
        yield key, _Piece(path, offset, entry["dtype"], 0, math.prod(shape)), shape


def equal_in_files(paths: Sequence[Path], one: str, other: str) -> bool:
    """Whether two tensors of some files have the same type and bytes; also where one is missing."""
    pieces = {key: piece for path in paths for key, piece, _ in _pieces_of(path)}
    if one not in pieces or other not in pieces:
        return True
    a, b = pieces[one], pieces[other]
    if (a.dtype, a.numel) != (b.dtype, b.numel):
        return False
    with open(a.path, "rb") as first, open(b.path, "rb") as second:
        first.seek(a.offset)
        second.seek(b.offset)
        left = a.numel * _SIZES.get(a.dtype, 1)
        while left:
            size = min(left, 2**20)
            if first.read(size) != second.read(size):
                return False
            left -= size
    return True


def _read_all(file: Any, view: memoryview) -> None:
    while view:
        count = file.readinto(view)
        if not count:
            raise OSError(f"{file.name} ends before its tensors do")
        view = view[count:]


def _widened(raw: bytearray, dtype: str) -> np.ndarray:
    if dtype == "BF16":  # the upper half of an fp32 number
        return (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
    return np.frombuffer(raw, {"F16": "<f2", "F64": "<f8"}[dtype]).astype(np.float32)
