"""Write safetensors files with their digest in one pass, and read slices of them.

The format: 8 bytes of header length, a JSON header, the tensors' bytes.
Source: https://github.com/huggingface/safetensors#format
"""

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

_WRITE_BYTES = 8 * 2**20  # between two digests: small enough to still be in the cache


def write_tensors(path: Path, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Write and sync fp32 arrays; return the file's size and digest.

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
    digest, size = hashlib.sha256(), 0
    # Digesting and writing both let other threads run: together they take the longer of both.
    with open(path, "xb", buffering=0) as file, ThreadPoolExecutor(1) as digester:
        blocks: list[Any] = [len(text).to_bytes(8, "little") + text, *arrays.values()]
        for block in blocks:
            view = memoryview(block).cast("B")
            for start in range(0, len(view), _WRITE_BYTES):
                piece = view[start : start + _WRITE_BYTES]
                digesting = digester.submit(digest.update, piece)
                _write_all(file, piece)
                digesting.result()
            size += len(view)
        os.fsync(file.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}


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
