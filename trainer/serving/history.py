"""What served when, for one run: `{run_name}/services.jsonl`, a line for each change.

    {"event": "served" | "rolled back" | "stopped", "revision": 3, "started": "...", ...}

The models of earlier revisions are found by their digest: those of a cluster are kept for
that (kept.py), and starting a run over puts its `final/` aside (trainer/run_folder.py).
Loads nothing but the standard library.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainer.checkpoints import read_manifest
from trainer.durable import write_atomically
from trainer.errors import DamagedError, RequestError
from trainer.run_folder import RunFolder

Entry = Mapping[str, Any]


def read_history(run: RunFolder) -> list[Entry]:
    """All entries, the oldest first."""
    return [json.loads(line) for line in _whole_lines(run).splitlines()]


def _whole_lines(run: RunFolder) -> str:
    """The history without a last line that was cut off by a crash."""
    try:
        text = run.services.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    return text[: text.rfind("\n") + 1]


def append(run: RunFolder, event: str, **fields: Any) -> Entry:
    """Write down that something changed, now; on a full volume nothing is written."""
    entry = {"event": event, **fields, "time": datetime.now(UTC).isoformat(timespec="seconds")}
    write_atomically(run.services, _whole_lines(run) + json.dumps(entry) + "\n")
    return entry


def next_revision(run: RunFolder) -> int:
    """The number of the next server of the run; each has one of its own."""
    return max((entry["revision"] for entry in read_history(run)), default=0) + 1


def previous(run: RunFolder) -> Entry:
    """What served before the model that serves, or served last.

    Raises:
        RequestError: Nothing did.
    """
    served = [entry for entry in read_history(run) if entry["event"] != "stopped"]
    for entry in reversed(served):
        if entry["model_digest"] != served[-1]["model_digest"]:
            return entry
    raise RequestError(
        f"NAME has no earlier revision to go back to (got {run.root.name!r}). "
        f"{run.services.name} names {len(served)}, all of one model."
    )


def model_of(run: RunFolder, digest: str) -> Path:
    """The folder that holds the run's model of that digest.

    Raises:
        RequestError: It is no longer there.
    """
    aside = sorted(run.root.glob("replaced/*/final"))
    for folder in (run.served_model(digest), run.final, *aside):
        try:
            if read_manifest(folder).digest == digest:
                return folder
        except DamagedError:
            continue
    raise RequestError(
        f"NAME can't go back (got {run.root.name!r}): no folder holds the model {digest[:12]} "
        "any more. Train it again to serve it."
    )
