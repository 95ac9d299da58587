"""What is kept of a series of retrainings. Loads nothing heavy.

retrain/{series}/champion.json     the run whose model is the best one so far
retrain/{series}/decisions.jsonl   every decision with its figures, the oldest first
retrain/{series}/pending.json      the run that is being trained, until it is decided on
retrain/{series}/space.jsonl       room on the volume after each night, see trainer/retention
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NotRequired

from typing_extensions import TypedDict

from trainer.contract import events
from trainer.contract.errors import DamagedError
from trainer.contract.files import set_aside, write_atomically
from trainer.contract.json_files import damage_of_lines, read_lines, read_object, readable_object
from trainer.contract.run_folder import RunFolder

FOLDER = "retrain"
DECIDED = ("promoted", "kept")  # of a run that was trained and compared
ABANDONED = "abandoned"  # of a run that was begun for text that changed again meanwhile


class Champion(TypedDict):
    run: str
    since: str
    tokenizer_digest: str


class Pending(TypedDict):
    run: str
    fingerprint: dict[str, str]
    model: str


class Decision(TypedDict):
    decision: str
    fingerprint: dict[str, str]
    time: str
    run: NotRequired[str]


class Series:
    """What is kept of one series of retrainings."""

    def __init__(self, volume: str | Path, name: str) -> None:
        self.volume, self.name = Path(volume), name
        folder = self.volume / FOLDER / name
        self.champion_path = folder / "champion.json"
        self.decisions_path = folder / "decisions.jsonl"
        self.pending_path = folder / "pending.json"
        self.space_path = folder / "space.jsonl"

    def champion(self) -> dict[str, Any] | None:
        """The run that is the best one so far; what the decisions say where its file is damaged."""
        try:
            return read_object(self.champion_path, Champion)
        except DamagedError as error:
            promoted = self.promoted()
            found = self._champion_of(promoted[-1]) if promoted else None
            events.say(f"{error}; by the decisions it is {found['run'] if found else 'none'}")
            return found

    def _champion_of(self, decision: dict[str, Any]) -> dict[str, Any]:
        record = RunFolder(self.volume, decision["run"]).record() or {}
        digest = record.get("tokenizer_digest", "")
        return {"run": decision["run"], "since": decision["time"], "tokenizer_digest": digest}

    def decisions(self) -> list[dict[str, Any]]:
        """Every decision, the oldest first."""
        return list(read_lines(self.decisions_path, Decision))

    def promoted(self) -> list[dict[str, Any]]:
        """The decisions by which a run became the champion, the oldest first."""
        return [d for d in self.decisions() if d["decision"] == "promoted"]

    def pending(self) -> dict[str, Any] | None:
        """The run that is being trained; None where there is none, or its file is damaged."""
        return readable_object(self.pending_path, Pending)

    def append(self, decision: dict[str, Any]) -> None:
        lines = [*self.decisions(), {"time": now(), **decision}]
        if damage := damage_of_lines(self.decisions_path, Decision):
            aside = set_aside(self.decisions_path)
            events.say(f"{damage}; its good lines were kept, all lines are in {aside.name}")
        write_atomically(self.decisions_path, "".join(f"{json.dumps(line)}\n" for line in lines))


def series_names(volume: Path) -> list[str]:
    """The series of retrainings on a volume."""
    folder = volume / FOLDER
    return (
        sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    )


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
