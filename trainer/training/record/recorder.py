"""What a run leaves line by line while it trains: records, curves and event lines."""

from collections.abc import Mapping
from typing import Any

from trainer.contract import events
from trainer.training.job import Job
from trainer.training.record.trackers import trackers_of
from trainer.training.save.records import Records


class Recorder:
    """Of the first process, which speaks for all of them."""

    def __init__(self, job: Job, step: int) -> None:
        """Begin to record.

        Args:
            step: That the run resumes from.
        """
        self._records = Records(job.run.root)
        self._trackers = trackers_of(job, step)

    def metric(self, line: Mapping[str, Any]) -> None:
        """Add a line to metrics.jsonl and the curves."""
        self._records.add("metrics.jsonl", line)
        for tracker in self._trackers:
            tracker.add(line)
        events.emit("metric", **line)

    def sample(self, line: Mapping[str, Any]) -> None:
        """Add a line to samples.jsonl, and show its first text."""
        self._records.add("samples.jsonl", line)
        events.emit("sample", **line)
        print(f"step {line['step']} | {line['prompt']}|{line['texts'][0]}", flush=True)

    def skipped(self, line: Mapping[str, Any]) -> None:
        """Add a line to skipped.jsonl, and say so."""
        self._records.add("skipped.jsonl", line)
        events.say(
            f"step {line['step']} was left out: its loss or gradient is not finite. "
            f"Contexts {line['contexts']} of {', '.join(line['documents'])}"
        )

    def synced_sizes(self) -> dict[str, int]:
        """Bytes of each file of records, all of which would survive a power cut."""
        return self._records.synced_sizes()

    def close(self) -> None:
        self._records.close()
        for tracker in self._trackers:
            tracker.close()
