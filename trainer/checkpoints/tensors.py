"""Write safetensors files with their digest in one pass, and read slices of them.

The format: 8 bytes of header length, a JSON header, the tensors' bytes.
Source: https://github.com/huggingface/safetensors#format
"""

import json
import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

_WRITE_BYTES = 2**20  # digested, then written: small enough to be in the cache the second time
_SYNC_BYTES = 16 * 2**20  # the disk begins with the first part while the next is written


def write_tensors(path: Path, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Write and sync fp32 arrays; return the file's size and digest.

    The digest is there to find damage, which needs no cryptography: XXH3 with 128 bits
    is nine times as fast as SHA-256, and a manifest that anybody may rewrite proves no more.

    Args:
        path: Must not exist.
        arrays: Flat, contiguous, by name.
    """
    header: dict[str, Any] = {}
    offset = 0
    for name, array in arrays.items():
        header[name] = {
            "dtype": "F32",
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


class SliceReader:
    """Reads any range of any parameter from the files of a checkpoint, whoever wrote them."""

    def __init__(self, folder: Path) -> None:
        self._pieces: dict[str, list[tuple[int, np.ndarray]]] = {}
        for path in sorted(folder.glob("*.safetensors")):
            for key, array in _mapped(path).items():
                name, _, start = key.rpartition("@")
                self._pieces.setdefault(name, []).append((int(start), array))

    def names(self, kind: str) -> list[str]:
        """The parameters of which there is a `kind`, such as `weight`."""
        return sorted(n.split("/", 1)[1] for n in self._pieces if n.startswith(f"{kind}/"))

    def numel(self, name: str) -> int:
        return sum(array.size for _, array in self._pieces[name])

    def read(self, name: str, start: int, out: np.ndarray) -> None:
        """Fill `out`, flat, with the numbers of `name` (kind/parameter) from `start` on."""
        stop, filled = start + out.size, 0
        for first, array in self._pieces.get(name, ()):
            low, high = max(start, first), min(stop, first + array.size)
            if low < high:
                out[low - start : high - start] = array[low - first : high - first]
                filled += high - low
        if filled != out.size:
            raise ValueError(f"{name} has {filled} of {out.size} numbers from {start} on")


def _mapped(path: Path) -> dict[str, np.ndarray]:
    """The file's arrays, mapped rather than read."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    raw = np.memmap(path, dtype=np.uint8, mode="r", offset=8 + length) if header else None
    arrays = {}
    for name, entry in header.items():
        low, high = entry["data_offsets"]
        assert raw is not None and entry["dtype"] == "F32", entry
        arrays[name] = raw[low:high].view(np.float32)
    return arrays
