"""Replays that leave texts out of a run, within a budget; what was measured is kept.

In cache/blame/: a command that was interrupted, or has more time now, measures nothing twice.
"""

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.blaming.halving import Group, OutOfBudgetError
from trainer.blaming.repetition import repeat
from trainer.blaming.suspects import Texts, documents_of
from trainer.blaming.target import Question
from trainer.contract import events
from trainer.contract.files import write_atomically
from trainer.contract.json_files import readable_object
from trainer.contract.run_folder import RunFolder
from trainer.devices import devices
from trainer.replaying.forks import in_forks
from trainer.replaying.scratch import threads_of
from trainer.tokens.left_out import of_documents
from trainer.tokens.store import TokenStore
from trainer.training.job import Job

FOLDER = "cache/blame"


@dataclass(kw_only=True)
class Repetitions:
    """Measures what leaving groups of texts out of a run does to a target."""

    run: RunFolder
    job: Job
    store: TokenStore
    texts: Texts
    question: Question
    key: str
    """Names run, target and versions: what is kept is of these."""
    seconds_each: float
    """What one is expected to take; then what the last one took."""
    done: dict[Group, dict[str, Any]] = field(default_factory=dict)
    _began: float = field(default_factory=time.monotonic)

    @property
    def at_a_time(self) -> int:
        """As many as have GPUs, or processors, of their own."""
        if self.question.at_a_time:
            return self.question.at_a_time
        if devices():
            return max(1, len(devices()) // self.job.processes)
        return max(1, (os.cpu_count() or 1) // (self.job.processes * threads_of(self.run)))

    @property
    def left(self) -> int:
        """How many more are allowed."""
        return max(0, self.question.max_replays - len(self.done))

    def measure(self, groups: Sequence[Group]) -> list[dict[str, Any]]:
        """What `target.measured` says of the run without each group.

        Raises:
            OutOfBudgetError: It would take more replays, or more time, than is allowed.
        """
        new = [group for group in dict.fromkeys(groups) if group not in self.done]
        if len(new) > self.left:
            raise OutOfBudgetError
        kept = {group: readable_object(self._path(group)) for group in new}
        waiting = [group for group in new if kept[group] is None]
        if waiting and not self._has_time(-(-len(waiting) // self.at_a_time)):
            raise OutOfBudgetError
        self.done |= {group: found for group, found in kept.items() if found is not None}
        self._replay(waiting)
        return [self.done[group] for group in groups]

    def _has_time(self, rounds: int) -> bool:
        used = time.monotonic() - self._began
        most = 3600 * self.question.max_hours
        return not most or used + rounds * self.seconds_each <= most

    def _replay(self, groups: list[Group]) -> None:
        words = [
            (self.run.root.parent, self.run.root.name, self._contexts(group), self.question)
            for group in groups
        ]
        together = min(self.at_a_time, len(groups))
        gpus_each = self.job.processes if together > 1 and len(devices()) > 1 else 0
        for index, found in in_forks(repeat, words, together, gpus_each):
            self._keep(groups[index], found)

    def _contexts(self, group: Group) -> list[int]:
        return of_documents(self.store, documents_of(self.texts, group)).contexts.tolist()

    def _keep(self, group: Group, found: dict[str, Any]) -> None:
        self.done[group], self.seconds_each = found, found["seconds"]
        path = self._path(group)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(found))
        total = self.question.max_replays
        events.progress(label="replays", done=len(self.done), total=total, unit="replays")

    def _path(self, group: Group) -> Path:
        documents = json.dumps(documents_of(self.texts, group))
        name = hashlib.sha256(f"{self.key} {documents}".encode()).hexdigest()
        return self.run.root.parent / FOLDER / f"{name}.json"
