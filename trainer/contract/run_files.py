"""What each file of a run's folder holds, and which files are damaged.

    run.json .run.json       the request; the second is a copy, for the first's repair
    outcomes/ times/         an object for each step
    *.jsonl                  an object a line
    evaluation.json service.json went-back.json

Checkpoints and models are sealed by digests, see trainer/contract/sealed_folder.py.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NotRequired

from annotated_types import MinLen
from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from trainer.contract.errors import DamagedError
from trainer.contract.json_files import OBJECT, damage_of_lines, read_bytes, read_object
from trainer.contract.outcome import Outcome

# JSON has the types that it says; keys of other versions are left alone.
_JSON = ConfigDict(extra="allow", strict=True)
Number = float | None


@with_config(_JSON)
class Plan(TypedDict):
    gpu: NotRequired[str]
    parameters: NotRequired[int]
    steps: NotRequired[int]
    correction: NotRequired[float]
    seconds_per_step: NotRequired[float]
    dollars: NotRequired[Number]
    dollars_per_hour: NotRequired[Number]


@with_config(_JSON)
class Forked(TypedDict):
    run: str
    step: int


@with_config(_JSON)
class Record(TypedDict):
    request: dict[str, Any]
    created: str
    attempt: NotRequired[str]
    plan: NotRequired[Plan]
    config: NotRequired[dict[str, Any]]
    sizing: NotRequired[dict[str, Any]]
    versions: NotRequired[dict[str, str]]
    code: NotRequired[dict[str, Any]]
    model: NotRequired[str]
    tokens: NotRequired[str]
    forked_from: NotRequired[Forked]


def trained_batch_size(record: Mapping[str, Any]) -> int | None:
    """Contexts in a micro-batch of the run: as asked, or as it was worked out; None: not yet."""
    asked = record.get("request", {}).get("batch_size", -1)
    return asked if asked > 0 else record.get("sizing", {}).get("batch_size")


@with_config(_JSON)
class Saved(TypedDict):
    step: int
    at: float
    parts: dict[str, float]


@with_config(_JSON)
class Times(TypedDict):
    step: str
    flow_began: float
    asked: float
    placed: NotRequired[float]
    began: float
    seen: float
    status: str
    from_step: int | None
    parts: dict[str, float]
    saves: list[Saved]


@with_config(_JSON)
class Metric(TypedDict):
    step: int
    loss: NotRequired[Number]
    eval_loss: NotRequired[Number]
    learning_rate: NotRequired[Number]
    seconds: NotRequired[float]
    tokens: NotRequired[int]
    gpu_memory_gib: NotRequired[float]
    host_memory_gib: NotRequired[float]


@with_config(_JSON)
class Sample(TypedDict):
    step: int
    prompt: str
    texts: Annotated[list[str], MinLen(1)]


@with_config(_JSON)
class Skipped(TypedDict):
    step: int


@with_config(_JSON)
class Compared(TypedDict):
    prompt: str
    base: list[str]
    finetuned: list[str]


@with_config(_JSON)
class Losses(TypedDict):
    base_loss: Number
    loss: Number


@with_config(_JSON)
class ComparedLosses(Losses):
    compared: dict[str, Any]
    tasks: NotRequired[list[dict[str, Any]]]
    parts: NotRequired[list[dict[str, Any]]]
    pairs: NotRequired[dict[str, Any]]


@with_config(_JSON)
class Evaluation(ComparedLosses):
    contexts: int
    tokens: int
    base_perplexity: Number
    perplexity: Number
    samples: list[Compared]


@with_config(_JSON)
class TokenManifest(TypedDict):
    """Of a store, as far as a report shows it: see trainer/tokens/store.py."""

    sources: NotRequired[list[dict[str, Any]]]
    totals: NotRequired[dict[str, Any]]
    parts: NotRequired[list[dict[str, Any]]]


@with_config(_JSON)
class Served(TypedDict):
    event: str
    revision: int
    model_digest: NotRequired[str]


_OBJECTS = {
    "run.json": Record,
    ".run.json": Record,
    "evaluation.json": Evaluation,
    "service.json": OBJECT,
    "went-back.json": OBJECT,
}
_FOLDERS = {"outcomes": Outcome, "times": Times}
_LINES = {
    "metrics.jsonl": Metric,
    "samples.jsonl": Sample,
    "skipped.jsonl": Skipped,
    "services.jsonl": Served,
}
_TEXTS = ("evaluation.md", "report.html")


def damages(root: Path, *, lines: bool = True) -> list[str]:
    """One phrase for each damaged file of the run's folder `root`: `NAME is damaged (REASON)`.

    Args:
        lines: Read the .jsonl files, too: they may be long.
    """
    found = [phrase for name in _OBJECTS for phrase in _damage(root, name, _check_object)]
    for folder, kind in _FOLDERS.items():
        place = root / folder
        if place.exists() and not place.is_dir():
            found.append(f"{folder} is damaged (it is no folder)")
        for path in sorted(place.glob("[!.]*.json")):
            found += _damage(root, f"{folder}/{path.name}", _check_object, kind)
    found += [phrase for name in _TEXTS for phrase in _damage(root, name, read_bytes)]
    if lines:
        checked = ((name, damage_of_lines(root / name, kind)) for name, kind in _LINES.items())
        found += [phrase for _, phrase in checked if phrase]
    return found


def _check_object(path: Path, kind: Any = None) -> None:
    read_object(path, kind or _OBJECTS[path.name])


def _damage(root: Path, name: str, check: Callable[..., Any], *more: Any) -> Iterator[str]:
    path = root / name
    try:
        check(path, *more)
    except DamagedError as error:
        yield str(error).replace(path.name, name, 1)
