"""Damaged records of services and of local steps: what can be known without them is used."""

import json
from pathlib import Path
from typing import Any

import pytest

from infra.local import service_records
from infra.local.processes import LocalBackend
from infra.local.step_folder import clear, read_json, read_work

SERVICE: dict[str, Any] = {
    "url": "http://127.0.0.1:1",
    "pid": 1,
    "process_started": "7",
    "model": "run/final",
    "name": "final",
    "model_digest": "a",
    "tokenizer_digest": "b",
    "dtype": "float32",
    "figures": {"loss": 2.0},
    "revision": 3,
    "started": "2026-01-01T00:00:00+00:00",
    "log": "serve.log",
    "config": {},
}
DEEP = "[" * 100_000
TEXTS = ["", "{", "[1]", "null", '"text"', '{"pid": 5}', DEEP, "\0" * 100]
WRONG = [{**SERVICE, "pid": "1"}, {**SERVICE, "figures": []}, {**SERVICE, "url": 5}]


def recorded(volume: Path) -> service_records.Service | None:
    return service_records.recorded(volume, "run")


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    service_records.record(tmp_path, "run", service_records.Service(**SERVICE), "served")
    return tmp_path


@pytest.mark.parametrize("text", [*TEXTS, *map(json.dumps, WRONG), None])
def test_damaged_service_record_is_read_from_the_history(volume: Path, text: str | None) -> None:
    path = service_records.record_file(volume, "run")
    clear(path)
    if text is None:
        path.mkdir()
    else:
        path.write_text(text)
    service = recorded(volume)
    assert service == service_records.Service(**SERVICE)
    service_records.record_stop(volume, "run", service, "now")
    assert recorded(volume) is None
    service_records.record(volume, "run", service, "served")
    assert recorded(volume) == service


def test_stopped_service_does_not_come_back(volume: Path) -> None:
    service = recorded(volume)
    assert service is not None
    service_records.record_stop(volume, "run", service, "now")
    service_records.record_file(volume, "run").write_text("{")
    assert recorded(volume) is None


@pytest.mark.parametrize("line", [*TEXTS[1:], '{"event": "served", "revision": "four"}'])
def test_revision_after_a_damaged_line_is_a_new_one(volume: Path, line: str) -> None:
    path = volume / "run/services.jsonl"
    path.write_text(path.read_text() + f"{line}\n")
    # The damaged line may have been of revision 4.
    assert service_records.last_revision(volume, "run") == 4


def test_history_in_the_way_is_set_aside(volume: Path) -> None:
    path = volume / "run/services.jsonl"
    path.unlink()
    path.mkdir()
    assert service_records.last_revision(volume, "run") == 0
    service_records.record(volume, "run", service_records.Service(**SERVICE), "served")
    assert recorded(volume) is not None and path.is_file()


@pytest.mark.parametrize("text", [*TEXTS, '{"key": 1, "what": 2}'])
def test_damaged_files_of_a_step_adopt_nothing(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "finetune-data/.runs/run/fetch"
    folder.mkdir(parents=True)
    for name in ("work.json", "outcome.json", "lock"):
        (folder / name).write_text(text)
    assert read_work(folder) is None
    assert not isinstance(read_json(folder / "outcome.json"), list)
    assert LocalBackend(tmp_path).running_steps("finetune-data", "run") == []


def test_folder_in_the_place_of_a_lock(tmp_path: Path) -> None:
    folder = tmp_path / "finetune-data/.runs/run/fetch"
    (folder / "lock").mkdir(parents=True)
    (folder / "work.json").mkdir()
    assert LocalBackend(tmp_path).running_steps("finetune-data", "run") == []
