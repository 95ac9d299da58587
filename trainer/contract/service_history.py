"""What served when, for one run: `{run_name}/services.jsonl`, a line for each change.

    {"event": "served" | "rolled back" | "stopped", "revision": 3, "started": "...", ...}

The models of earlier revisions are found by their digest: those of a cluster are kept for
that (kept.py), and starting a run over puts its `final/` aside (trainer/contract/run_folder.py).
Loads nothing but the standard library.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainer.contract import run_files
from trainer.contract.errors import DamagedError, RequestError
from trainer.contract.files import write_atomically
from trainer.contract.json_files import all_lines, read_bytes, read_lines
from trainer.contract.run_folder import RunFolder
from trainer.contract.sealed_folder import read_manifest

Entry = Mapping[str, Any]


def read_history(run: RunFolder) -> list[Entry]:
    """All entries, the oldest first."""
    return list(read_lines(run.services, run_files.Served))


def served(run: RunFolder) -> list[Entry]:
    """The entries of servers that took over, the oldest first."""
    return [e for e in read_history(run) if e["event"] != "stopped" and "model_digest" in e]


def _whole_lines(run: RunFolder) -> bytes:
    """The history without a last line that was cut off by a crash; damaged lines stay."""
    try:
        content = read_bytes(run.services) or b""
    except DamagedError:
        return b""
    return content[: content.rfind(b"\n") + 1]


def append(run: RunFolder, event: str, **fields: Any) -> Entry:
    """Write down that something changed, now; on a full volume nothing is written."""
    entry = {"event": event, **fields, "time": datetime.now(UTC).isoformat(timespec="seconds")}
    text = _whole_lines(run).decode(errors="replace")
    write_atomically(run.services, text + json.dumps(entry) + "\n")
    return entry


def next_revision(run: RunFolder) -> int:
    """The number of the next server of the run; each has one of its own."""
    lines = list(all_lines(run.services, run_files.Served))
    # A damaged line may have had the largest number. No revision has fewer lines than its number.
    return max((entry["revision"] for entry in lines if entry), default=0) + 1 + lines.count(None)


def previous(run: RunFolder) -> Entry:
    """What served before the model that serves, or served last.

    Raises:
        RequestError: Nothing did.
    """
    entries = served(run)
    for entry in reversed(entries):
        if entry["model_digest"] != entries[-1]["model_digest"]:
            return entry
    raise RequestError(
        f"NAME has no earlier revision to go back to (got {run.root.name!r}). "
        f"{run.services.name} names {len(entries)}, all of one model."
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
