"""What a model's weight files hold, read from their headers alone.

A safetensors file is 8 bytes of header length, the header as JSON (for each tensor
its dtype, shape and place), then the tensors without gaps. So its size follows
from its header, and a file that was cut short is found without reading it.
Source: the format's description in the safetensors project's README.
"""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_LENGTH = struct.Struct("<Q")
_MOST_HEADER_BYTES = 100_000_000  # the format's own limit
_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")


@dataclass(frozen=True)
class Tensor:
    dtype: str  # as safetensors names it: F32, BF16, ...
    shape: tuple[int, ...]


def read_header(path: Path) -> dict[str, Tensor]:
    """Name, dtype and shape of each tensor in a safetensors file.

    Raises:
        ValueError: The file is no safetensors file, or cut short; says which.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(_LENGTH.size)
        length = _LENGTH.unpack(start)[0] if len(start) == _LENGTH.size else 0
        if not 2 <= length <= min(_MOST_HEADER_BYTES, size - _LENGTH.size):
            raise ValueError(f"is not a safetensors file, or cut short (got {size:,} bytes)")
        text = file.read(length)
    try:
        entries = json.loads(text)
        entries.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        tensors = {name: Tensor(e["dtype"], tuple(e["shape"])) for name, e in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError("has a damaged header") from error
    expected = _LENGTH.size + length + end
    if size != expected:
        raise ValueError(f"is {size:,} bytes long where its header says {expected:,}")
    return tensors


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that a model in `folder` is loaded from.

    Raises:
        ValueError: There are none, only pickled ones, or shards are missing.
    """
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if (folder / INDEX).is_file():
        return _shards(folder)
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLED)
    if pickled:
        raise ValueError(
            f"has pickled weights only (got {pickled[0]}), which can run any code when they "
            "are loaded. Weights are safetensors here. Convert them once where you trust them: "
            "load the model with transformers and call save_pretrained()"
        )
    raise ValueError(f"has no weights. They are {SINGLE}, or shards named in {INDEX}")


def _shards(folder: Path) -> list[Path]:
    try:
        weight_map = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"has a damaged {INDEX} ({error!r})") from error
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise ValueError(f"has an {INDEX} that names files elsewhere (got {outside[0]!r})")
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"lacks {len(missing)} of its {len(names)} weight files (missing: {missing[0]})"
        )
    return [folder / name for name in names]


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the model in `folder`, over all its files.

    Raises:
        ValueError: A file is missing, damaged or lacks a tensor of the index.
    """
    tensors: dict[str, Tensor] = {}
    for path in weight_files(folder):
        try:
            tensors |= read_header(path)
        except ValueError as error:
            raise ValueError(f"has a damaged weight file: {path.name} {error}") from error
    if not (folder / SINGLE).is_file():
        named = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        lost = sorted(named.keys() - tensors.keys())
        if lost:
            raise ValueError(f"has weight files without {len(lost)} tensors, as {lost[0]!r}")
    return tensors


def count_parameters(tensors: dict[str, Tensor]) -> int:
    """Numbers in floating-point tensors; masks and counters are not parameters."""
    return sum(math.prod(t.shape) for t in tensors.values() if t.dtype in _FLOATS)
