"""The folder of one run on the volume: who may use it, and what is recorded there.

    {run_name}/run.json             the request that defines the run, versions, digests
    {run_name}/.run.json            a copy of it, which is used where the first one is damaged
    {run_name}/outcomes/{step}.json what each step ended with
    {run_name}/times/               where the time went, see trainer/report/journal.py
    {run_name}/went-back.json       to which checkpoint training went back from bad numbers, once
    {run_name}/replaced/{time}/     what `no_resume=true` put aside
    {run_name}/served/              models of its service, see trainer/serving/deploy/kept_models.py

A run is admitted by its finetune step, when the request was checked and the tokens
are there: a request that is refused leaves no trace under the run's folder.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainer.contract import run_files
from trainer.contract.addresses import masked
from trainer.contract.errors import DamagedError, RequestError
from trainer.contract.files import set_aside, sync, write_atomically
from trainer.contract.json_files import read_object, readable_object
from trainer.contract.later_keys import with_new_topics, without_later_defaults
from trainer.contract.outcome import Outcome

FORMAT = 1
# Of a request: what is sampled from a model changes nothing in it.
ONLY_SAMPLES = frozenset(
    "prompt_file prompt_every prompt_tokens prompt_samples top_k top_p temperature "
    "repetition_penalty".split()
)
# What a run that starts over leaves: what serves keeps serving, and its record with it.
STAYING = ("replaced", "served", "services.jsonl", "service.json")


class RunFolder:
    """Paths and records of the run `run_name` on the volume at `volume`."""

    def __init__(self, volume: str | Path, run_name: str) -> None:
        self.root = Path(volume) / run_name
        self.record_path = self.root / "run.json"
        self.record_copy = self.root / ".run.json"
        self.checkpoints = self.root / "checkpoints"
        self.metrics = self.root / "metrics.jsonl"
        self.samples = self.root / "samples.jsonl"
        self.outcomes = self.root / "outcomes"
        self.final = self.root / "final"
        self.report = self.root / "evaluation.json"
        self.services = self.root / "services.jsonl"
        self.served = self.root / "served"
        self.times = self.root / "times"
        self.went_back = self.root / "went-back.json"

    def served_model(self, digest: str) -> Path:
        """Where a model of that digest is kept for its servers."""
        return self.served / digest[:16]

    @property
    def is_admitted(self) -> bool:
        """Whether there is a run.json, good or damaged."""
        return os.path.lexists(self.record_path)

    def record(self) -> dict[str, Any] | None:
        """What run.json holds, or None where the run was never admitted.

        Raises:
            DamagedError: It is damaged, and so is its copy.
        """
        try:
            return read_object(self.record_path, run_files.Record)
        except DamagedError as error:
            if copy := readable_object(self.record_copy, run_files.Record):
                return copy
            raise DamagedError(
                f"{self.root.name}/{error}, and there is no good copy of it. Restore it from a "
                "backup, or set no_resume=true to start the run over."
            ) from error

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Write run.json, which admits the run, after its copy."""
        text = json.dumps(record, indent=1)
        write_atomically(self.record_copy, text)
        write_atomically(self.record_path, text)

    @property
    def admission(self) -> str:
        """16 hex digits that change when the run starts over; empty where none was admitted."""
        record = self.record()
        if record is None:
            return ""
        named = json.dumps([record.get("created"), record.get("attempt"), record["request"]])
        return hashlib.sha256(named.encode()).hexdigest()[:16]

    def outcome(self, step: str) -> Outcome | None:
        """What `step` ended with last; None where that is not known."""
        found = readable_object(self.outcomes / f"{step}.json", run_files.Outcome)
        return Outcome(**found) if found else None

    def mend(self) -> list[str]:
        """Restore run.json from its copy; one phrase for each damaged file of the run.

        Nothing is changed on a volume that takes no writes.
        """
        found = run_files.damages(self.root)
        if any(phrase.startswith("run.json is") for phrase in found):
            record = readable_object(self.record_copy, run_files.Record)
            with contextlib.suppress(OSError):
                if record is not None:
                    aside = set_aside(self.record_path).name
                    self.write_record(record)
                    found.append(f"run.json was restored from its copy; the damaged one is {aside}")
        return found

    def record_outcome(self, outcome: Outcome) -> None:
        """Write the outcome, unless the run is not admitted or refused this request.

        Finding a result again does not overwrite how it was made.
        """
        if outcome.status == "refused" or not self.is_admitted:
            return
        earlier = self.outcome(outcome.step)
        if not (outcome.reused and earlier is not None and earlier.status == "done"):
            write_atomically(self.outcomes / f"{outcome.step}.json", outcome.to_json())

    def refuse_other_request(self, request: Mapping[str, Any]) -> None:
        """Raise RequestError, naming what differs, where the run was made with another request."""
        record = self.record()
        if record is None:
            return
        before, now = (
            {
                name: masked(value) if isinstance(value, str) else value
                for name, value in asked.items()
                if name not in ONLY_SAMPLES
            }
            for asked in (record["request"], request)
        )
        differing = differences(before, now)
        if differing:
            raise RequestError(
                f"run_name {self.root.name!r} is taken by a run with other parameters: "
                + "; ".join(differing)
                + ". Take another run_name, the same parameters, or no_resume=true to start over."
            )

    def admit(
        self,
        request: Mapping[str, Any],
        attempt: str,
        made_from: Mapping[str, Any],
        earlier: Iterable[Mapping[str, Any]],
    ) -> None:
        """Make the folder with run.json and the outcomes of the steps before, or find it made.

        Args:
            request: The parameters that define the run.
            attempt: Who asked first, see `start_over`.
            made_from: Versions and digests of what the run is made from.
            earlier: The outcomes of the steps that came before the run was admitted.
        """
        self.refuse_other_request(request)
        if self.record() is None:
            record = {
                "format": FORMAT,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "attempt": attempt,
                "request": dict(request),
                **made_from,
            }
            self.write_record(record)
        for outcome in earlier:
            self.record_outcome(Outcome(**outcome))

    def restore_outcomes(self, earlier: Iterable[Mapping[str, Any]]) -> None:
        """Write the outcomes of earlier steps whose files are missing or damaged."""
        for outcome in earlier:
            if self.outcome(outcome["step"]) is None:
                self.record_outcome(Outcome(**outcome))

    def start_over(self, attempt: str) -> Path | None:
        """Put what is there aside, once for each `attempt`; nothing is deleted.

        Returns:
            Where it went, or None where there was nothing to put aside.
        """
        try:
            record = self.record()
        except DamagedError:
            record = {}  # put aside as well
        if record is None or (attempt and record.get("attempt") == attempt):
            return None
        kept = self.root / "replaced" / datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        kept.mkdir(parents=True)
        # run.json goes last: until then the run is still the old one, and this is done again.
        staying = (*STAYING, "run.json")
        names = sorted(p.name for p in self.root.iterdir() if p.name not in staying)
        for name in [*names, "run.json"]:
            (self.root / name).rename(kept / name)
        sync(self.root)
        return kept


def run_names(volume: Path) -> list[str]:
    """The runs on a volume, also those whose run.json can't be read."""
    if not volume.is_dir():
        return []
    there = (path for path in volume.iterdir() if not path.name.startswith("."))
    return sorted(path.name for path in there if os.path.lexists(path / "run.json"))


def damaged_records(volume: Path) -> list[str]:
    """What is wrong with each run.json of a volume: such a run may name anything that is there."""
    found = []
    for name in run_names(volume):
        try:
            RunFolder(volume, name).record()
        except DamagedError as error:
            found.append(str(error))
    return found


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One phrase for each key of both whose value differs: `epochs was 1, is 2`.

    A key that only one of them has is a parameter of another version of this
    program, which had or has no choice there; one that came later was at its default before.
    """
    before, now = (with_new_topics(without_later_defaults(asked)) for asked in (before, now))
    return [
        f"{name} was {before[name]!r}, is {now[name]!r}"
        for name in sorted({*before} & {*now})
        if before[name] != now[name]
    ]
