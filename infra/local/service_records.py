"""What a run's service on this machine leaves on the volume: its record, and what served when.

{run_name}/service.json              which process answers, since when, for what model
{run_name}/services.jsonl            what served when, see trainer/contract/service_history.py
"""

import contextlib
import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

from infra.local.step_folder import clear, parsed, read_json


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

    @property
    def api_key_variable(self) -> str:
        """Environment variable with the API key that it wants; empty: it wants none."""
        return str(self.config.get("api_key_variable", ""))


def record_file(volume: Path, run_name: str) -> Path:
    return volume / run_name / "service.json"


def recorded(volume: Path, run_name: str) -> Service | None:
    """The server that took over last, whether it lives or not.

    The history holds it, too: it is used where service.json is damaged.
    """
    path = record_file(volume, run_name)
    if not path.exists():
        return None
    if (service := _service(read_json(path))) is not None:
        return service
    entries = [entry for entry in _entries(volume, run_name) if entry is not None]
    return _service(entries[-1]) if entries and entries[-1].get("event") != "stopped" else None


def _service(entry: dict[str, Any] | None) -> Service | None:
    """The server that an entry describes; None where it describes none."""
    entry = entry or {}
    known = {f.name: entry[f.name] for f in dataclasses.fields(Service) if f.name in entry}
    wrong = [name for name, value in known.items() if not isinstance(value, _KINDS.get(name, str))]
    with contextlib.suppress(TypeError):  # it lacks some
        return None if wrong else Service(**known)
    return None


_KINDS = {"pid": int, "revision": int, "figures": dict, "config": dict}


def last_revision(volume: Path, run_name: str) -> int:
    """The highest number of a server of the run, or more where the history is damaged."""
    entries = _entries(volume, run_name)
    numbers = [entry.get("revision") for entry in entries if entry is not None]
    known = [number for number in numbers if isinstance(number, int)]
    return max(known, default=0) + len(entries) - len(known)


def _entries(volume: Path, run_name: str) -> list[dict[str, Any] | None]:
    """The history line by line; None for a damaged line."""
    return [parsed(line) for line in _history(volume, run_name).splitlines()]


def _history(volume: Path, run_name: str) -> str:
    """What served when, without a last line that was cut off by a crash."""
    try:
        path = volume / run_name / "services.jsonl"
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
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
    clear(record_file(volume, run_name))
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
            if path.is_dir():  # damaged
                path.rename(path.with_name(f"{path.name}.damaged-{time.time_ns()}"))
            os.replace(beside[path], path)
    finally:
        for path in beside.values():
            path.unlink(missing_ok=True)
