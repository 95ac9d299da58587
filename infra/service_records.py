"""What a run's service on this machine leaves on the volume: its record, and what served when.

{run_name}/service.json              which process answers, since when, for what model
{run_name}/services.jsonl            what served when, see trainer/serving/history.py
"""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Service:
    """A server that answers, as service.json holds it."""

    url: str
    pid: int
    process_started: str  # opaque: what tells this process from another with its id
    model: str  # the model's folder on the volume
    name: str  # the model's name in URLs
    model_digest: str
    tokenizer_digest: str
    dtype: str
    figures: dict[str, float]  # what the next revision is compared with: its validation loss
    revision: int  # counts the servers of the run
    started: str  # UTC, ISO 8601
    log: str
    config: dict[str, Any] = dataclasses.field(default_factory=dict)  # as `start` was given it


def record_file(volume: Path, run_name: str) -> Path:
    return volume / run_name / "service.json"


def recorded(volume: Path, run_name: str) -> Service | None:
    """The server that took over last, whether it lives or not."""
    try:
        text = record_file(volume, run_name).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    return Service(**json.loads(text))


def last_revision(volume: Path, run_name: str) -> int:
    """How many servers the run has had."""
    lines = _history(volume, run_name).splitlines()
    return max((json.loads(line)["revision"] for line in lines), default=0)


def _history(volume: Path, run_name: str) -> str:
    """What served when, without a last line that was cut off by a crash."""
    try:
        text = (volume / run_name / "services.jsonl").read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    return text[: text.rfind("\n") + 1]


def record(volume: Path, run_name: str, service: Service, event: str) -> None:
    """Write down that the server takes over."""
    (volume / run_name).mkdir(parents=True, exist_ok=True)
    now = dataclasses.asdict(service)
    entry = {"event": event, **now, "time": service.started}
    _replace(
        {
            **_with_entry(volume, run_name, entry),
            record_file(volume, run_name): json.dumps(now, indent=1),
        }
    )


def record_stop(volume: Path, run_name: str, service: Service, when: str) -> None:
    """Write down that the server was stopped, and none came after it."""
    record_file(volume, run_name).unlink(missing_ok=True)
    entry = {"event": "stopped", "revision": service.revision, "time": when}
    _replace(_with_entry(volume, run_name, entry))


def _with_entry(volume: Path, run_name: str, entry: dict[str, Any]) -> dict[Path, str]:
    """The history's file and what it is to hold."""
    text = _history(volume, run_name) + json.dumps(entry) + "\n"
    return {volume / run_name / "services.jsonl": text}


def _replace(texts: dict[Path, str]) -> None:
    """Write the files: all of them or, where the volume is full, none."""
    beside = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in texts}
    try:
        for path, text in texts.items():
            beside[path].write_text(text, encoding="utf-8")
        for path in texts:
            os.replace(beside[path], path)
    finally:
        for path in beside.values():
            path.unlink(missing_ok=True)
