"""GPU classes and prices as data: what a plan knows of the machines it plans for.

The data are `gpus.yaml` and `prices.yaml` beside this file; a user's files of the
same form replace them where $FINETUNE_GPUS or $FINETUNE_PRICES names one.
"""

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

_GPUS = Path(__file__).with_name("gpus.yaml")
_PRICES = Path(__file__).with_name("prices.yaml")
REACHED_SHARE = 0.28  # of a GPU's peak, where its entry says nothing
GPUS_VARIABLE, PRICES_VARIABLE = "FINETUNE_GPUS", "FINETUNE_PRICES"


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A class of GPU; the units are in gpus.yaml."""

    memory_gib: float
    peak_tflops: float
    bandwidth_gbs: float
    host_gbs: float
    peer_gbs: float
    bf16: bool
    most_per_node: int
    reached_share: float = REACHED_SHARE


@dataclass(frozen=True, kw_only=True)
class Prices:
    """Dollars an hour."""

    core: float
    memory_gib: float
    gpus: Mapping[str, float] = field(default_factory=dict)
    spot: Mapping[str, float] = field(default_factory=dict)
    """Of GPUs on nodes that the provider may take back; a file may leave it out."""

    def per_hour(
        self, gpu: str, gpus: int, cores: int, memory_gib: float, *, spot: bool = False
    ) -> float | None:
        """What a machine costs an hour; None where its GPU has no such price."""
        prices = self.spot if spot else self.gpus
        if (gpus or spot) and gpu not in prices:
            return None
        gpu_dollars = prices[gpu] * gpus if gpus else 0.0
        return gpu_dollars + self.core * cores + self.memory_gib * memory_gib


def load_gpus(path: Path | None = None) -> dict[str, Gpu]:
    """The GPU classes in `path`, by their label; None: those of the user's file, else ours.

    Raises:
        ValueError: The file is not there or not of the form of gpus.yaml; says where.
    """
    path = path or Path(os.environ.get(GPUS_VARIABLE) or _GPUS)
    found = {}
    for name, entry in _mapping(path, _read(path)).items():
        found[str(name)] = Gpu(**_entry(Gpu, path, str(name), entry))
    return found


def load_prices(path: Path | None = None) -> Prices:
    """The prices in `path`; None: those of the user's file, else ours.

    Raises:
        ValueError: The file is not there or not of the form of prices.yaml; says where.
    """
    path = path or Path(os.environ.get(PRICES_VARIABLE) or _PRICES)
    entry = _entry(Prices, path, "the file", _read(path))
    for kind in ("gpus", "spot"):
        for name, price in _mapping(path, entry[kind]).items():
            _number(path, f"{kind}: {name}", price)
    return Prices(**entry)


def gpu_of_device(catalogue: Mapping[str, Gpu], name: str, memory_gib: float, *, bf16: bool) -> Gpu:
    """What a plan takes a card of this machine for.

    Its memory is its own. Its rates are those of the class whose name stands in the driver's name
    for it, or of the one that is nearest in memory.

    Args:
        name: As the driver says it, such as `NVIDIA A100-SXM4-80GB`.
    """
    words = name.upper().replace("SXM", "NVLINK ").replace("-", " ").split()

    def distance(label: str) -> tuple[int, float]:
        parts = label.upper().split("_")
        model = parts[:2] if parts[0] in ("RTX", "QUADRO", "TESLA") else parts[:1]
        named = sum(part in words for part in parts) if set(model) <= {*words} else 0
        return -named, abs(catalogue[label].memory_gib - memory_gib)

    nearest = catalogue[min(catalogue, key=distance)]
    return replace(nearest, memory_gib=memory_gib, bf16=bf16)


def find_gpu(catalogue: Mapping[str, Gpu], name: str) -> Gpu:
    """The class `name`.

    Raises:
        ValueError: There is none; with the nearest names.
    """
    if name in catalogue:
        return catalogue[name]
    near = [label for label in catalogue if name and name.lower() in label.lower()]
    near = near or difflib.get_close_matches(name, catalogue, n=3, cutoff=0.4)
    raise ValueError(
        f"trainer_gpu is no class of the catalogue (got {name!r}). "
        f"Known are {', '.join(catalogue)}. "
        + (f"Did you mean {' or '.join(near)}?" if near else "Take one, or add it to the file.")
        + " none trains on CPUs."
    )


def _read(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(
            f"{path} can't be read ({error.strerror}). {GPUS_VARIABLE} and {PRICES_VARIABLE} name "
            "files like gpus.yaml and prices.yaml in trainer/planning/. Correct or unset them."
        ) from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML ({error}). Correct it.") from error


def _mapping(path: Path, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{path} is no mapping (got {value!r}). See {_GPUS.name}, {_PRICES.name}.")
    return value


def _entry(cls: type, path: Path, name: str, entry: Any) -> dict[str, Any]:
    """The fields of `cls` in `entry`, all of them and no other."""
    expected = {f.name: f.type for f in fields(cls)}
    if isinstance(entry, Mapping):  # what a file may leave out
        entry = {**({"spot": {}} if cls is Prices else {"reached_share": REACHED_SHARE}), **entry}
    if not isinstance(entry, Mapping) or entry.keys() != expected.keys():
        raise ValueError(
            f"{path}: {name} has the wrong keys (got {entry!r}). They are {', '.join(expected)}."
        )
    for key, kind in expected.items():
        if kind in (float, int):
            _number(path, f"{name}: {key}", entry[key])
    return dict(entry)


def _number(path: Path, place: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise ValueError(f"{path}: {place} is no number of 0 or more (got {value!r}).")
