"""The folder of one run on the volume: who may use it, and what is recorded there.

    {run_name}/run.json             the request that defines the run, versions, digests
    {run_name}/outcomes/{step}.json what each step ended with
    {run_name}/times/               where the time went, see trainer/journal.py
    {run_name}/went-back.json       to which checkpoint training went back from bad numbers, once
    {run_name}/replaced/{time}/     what `no_resume=true` put aside
    {run_name}/served/              models of its service, see trainer/serving/kept.py

A run is admitted by its finetune step, when the request was checked and the tokens
are there: a request that is refused leaves no trace under the run's folder.
"""

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainer.durable import sync, write_atomically
from trainer.errors import RequestError
from trainer.outcome import Outcome

FORMAT = 1
# What a run that starts over leaves: what serves goes on serving, and its record with it.
STAYING = ("replaced", "served", "services.jsonl", "service.json")


class RunFolder:
    """Paths and records of the run `run_name` on the volume at `volume`."""

    def __init__(self, volume: str | Path, run_name: str) -> None:
        self.root = Path(volume) / run_name
        self.record_path = self.root / "run.json"
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

    def record(self) -> dict[str, Any] | None:
        """What run.json holds, or None where the run was never admitted."""
        try:
            return json.loads(self.record_path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    def outcome(self, step: str) -> Outcome | None:
        """What `step` ended with last, or None."""
        try:
            return Outcome.from_json((self.outcomes / f"{step}.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    def record_outcome(self, outcome: Outcome) -> None:
        """Write the outcome, unless the run is not admitted or refused this request.

        Finding a result again does not overwrite how it was made.
        """
        if outcome.status == "refused" or not self.record_path.exists():
            return
        earlier = self.outcome(outcome.step)
        if not (outcome.reused and earlier is not None and earlier.status == "done"):
            write_atomically(self.outcomes / f"{outcome.step}.json", outcome.to_json())

    def refuse_other_request(self, request: Mapping[str, Any]) -> None:
        """Raise RequestError, naming what differs, where the run was made with another request."""
        record = self.record()
        if record is None:
            return
        differing = differences(record["request"], request)
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
            write_atomically(self.record_path, json.dumps(record, indent=1))
        for outcome in earlier:
            self.record_outcome(Outcome(**outcome))

    def start_over(self, attempt: str) -> Path | None:
        """Put what is there aside, once for each `attempt`; nothing is deleted.

        Returns:
            Where it went, or None where there was nothing to put aside.
        """
        record = self.record()
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


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One phrase for each key of both whose value differs: `epochs was 1, is 2`.

    A key that only one of them has is a parameter of another version of this
    program, which had or has no choice there.
    """
    return [
        f"{name} was {before[name]!r}, is {now[name]!r}"
        for name in sorted({*before} & {*now})
        if before[name] != now[name]
    ]
