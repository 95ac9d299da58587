"""What a model's weight files hold, read from their headers alone.

A safetensors file is 8 bytes of header length, the header as JSON (for each tensor
its dtype, shape and place), then the tensors without gaps. So its size follows
from its header, and a file that was cut short is found without reading it.
Source: the format's description in the safetensors project's README.
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.contract.json_text import parse_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_LENGTH = struct.Struct("<Q")
_MOST_HEADER_BYTES = 100_000_000  # the format's own limit
_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2}
_BYTES |= {"U16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1}


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
        entries = parse_json(text)
        entries.pop("__metadata__", None)
        tensors = {name: _tensor(entry) for name, entry in entries.items()}
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError("has a damaged header") from error
    expected = _LENGTH.size + length + end
    if size != expected:
        raise ValueError(f"is {size:,} bytes long where its header says {expected:,}")
    return tensors


def _tensor(entry: dict[str, Any]) -> Tensor:
    """An entry of the header, whose shape must fill the place that it names."""
    dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not all(isinstance(number, int) and number >= 0 for number in (*shape, begin, end)):
        raise ValueError("a size is no number")
    size = _BYTES.get(dtype)
    if size and size * math.prod(shape) != end - begin:
        raise ValueError("a shape does not fill its place")
    return Tensor(dtype, tuple(shape))


def has_weights(folder: Path) -> bool:
    """Whether there is a file of weights, or one that names them, of any kind."""
    files = (path.name for path in folder.iterdir())
    return any(name == INDEX or Path(name).suffix in (".safetensors", *PICKLED) for name in files)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that a model in `folder` is loaded from.

    Other files, such as shards of an earlier save or a moving average, do not count.

    Raises:
        ValueError: There are none, only pickled ones, or shards are missing, or both the index
            and a single file claim to be the model.
    """
    has_single, has_index = (folder / SINGLE).is_file(), (folder / INDEX).is_file()
    shards = _shards(folder) if has_index else []
    if has_single and shards not in ([], [folder / SINGLE]):
        raise ValueError(
            f"has two sets of weights: {SINGLE}, and {len(shards)} other files that {INDEX} "
            f"names. Delete the set that is not the model ({SINGLE}, or {INDEX})"
        )
    if has_single:
        return [folder / SINGLE]
    if has_index:
        return shards
    pickled = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLED)
    if pickled:
        raise ValueError(
            f"has pickled weights only (got {pickled[0]}), which can run any code when they "
            "are loaded. Weights are safetensors here. Convert them once where you trust them: "
            "load the model with transformers and call save_pretrained()"
        )
    raise ValueError(f"has no weights. They are {SINGLE}, or shards named in {INDEX}")


def shard_names(index: str | bytes) -> list[str]:
    """The files that the text of an index names.

    Raises:
        ValueError: It is damaged.
    """
    try:
        names = sorted(set(parse_json(index)["weight_map"].values()))
        if not all(isinstance(name, str) for name in names):
            raise ValueError("a file has no name")
        return names
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"has a damaged {INDEX} ({error!r})") from error


def _shards(folder: Path) -> list[Path]:
    names = shard_names((folder / INDEX).read_bytes())
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
        named = parse_json((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        lost = sorted(named.keys() - tensors.keys())
        if lost:
            raise ValueError(f"has weight files without {len(lost)} tensors, as {lost[0]!r}")
    return tensors


def count_parameters(tensors: dict[str, Tensor]) -> int:
    """Numbers in floating-point tensors; masks and counters are not parameters."""
    return sum(math.prod(t.shape) for t in tensors.values() if t.dtype in _FLOATS)
