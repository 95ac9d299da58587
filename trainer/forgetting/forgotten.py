"""`forgotten.json` at the volume's root: what was forgotten, so that no later run trains on it.

Documents stand there by the SHA-256 of their sanitized text, which copies under other names
share. `retrain` leaves out those that appear again in its text.
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from trainer.contract.files import write_atomically
from trainer.contract.json_files import read_object
from trainer.contract.topics import SkipConfig
from trainer.tokens.left_out import left_out
from trainer.tokens.store import TokenStore

FORMAT = 1
NAME = "forgotten.json"


class _Forgotten(TypedDict):
    format: int
    documents: list[dict[str, Any]]


def forgotten(volume: str | Path) -> list[str]:
    """The digests that are listed; raises DamagedError where the list can't be read."""
    found = read_object(Path(volume) / NAME, _Forgotten)
    return [entry["sha256"] for entry in found["documents"]] if found else []


def trained_on_it(volume: str | Path) -> set[str]:
    """Runs whose models were trained on any of it, as the certificates found them."""
    found = read_object(Path(volume) / NAME, _Forgotten)
    return {run for entry in found["documents"] for run in entry["trained"]} if found else set()


def remember(volume: Path, body: dict[str, Any]) -> None:
    """Add the documents of a certificate; one that is listed stays as it was."""
    found = read_object(volume / NAME, _Forgotten) or {"format": FORMAT, "documents": []}
    known = {entry["sha256"] for entry in found["documents"]}
    time = datetime.now(UTC).isoformat(timespec="seconds")
    models = {t["where"].split("/")[0] for t in body["elsewhere"] if t["what"] == "model"}
    trained = sorted({*models, body["run"]})
    for row in body["documents"]:
        if row["sanitized_sha256"] not in known:
            known.add(row["sanitized_sha256"])
            entry: dict[str, Any] = {"sha256": row["sanitized_sha256"], "document": row["document"]}
            entry |= {"run": body["new"], "time": time, "trained": trained}
            found["documents"].append(entry)
    write_atomically(volume / NAME, json.dumps(found, indent=1) + "\n")


def appearing(volume: str | Path, store: TokenStore, dataset: str) -> dict[str, Any] | None:
    """Of what was forgotten, the documents that the store has again; None where it has none.

    Returns:
        `sha256`, for `skip`, and the figures of what they take with them.
    Raises:
        DamagedError: forgotten.json can't be read. Nothing may be trained without it.
        RequestError: Nothing else is left, or a source changed meanwhile.
    """
    listed = forgotten(volume)
    if not listed:
        return None
    from trainer.tokens.text.document_digests import document_digests, rows_with

    digests = document_digests(Path(volume), store, dataset)
    rows = digests["sanitized"][rows_with(digests, set(map(bytes.fromhex, listed)), "sanitized")]
    again = sorted({row.tobytes().hex() for row in rows})
    if not again:
        return None
    found = left_out(store, SkipConfig(sha256=again), volume, dataset)
    assert found is not None
    return {"sha256": again, "figures": found.figures}
