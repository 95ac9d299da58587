"""Where else the text of forgotten documents still is on a volume, and removing it from there.

Found are places that this program writes. Backups, copies that people made, object stores'
old versions and models that were sent elsewhere are not seen from here: docs/forgetting.md.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from trainer.contract.checkpoints import name_of, remove, steps_there
from trainer.contract.errors import DamagedError, RequestError
from trainer.contract.run_folder import RunFolder, run_names
from trainer.contract.topics import SkipConfig
from trainer.contract.volume import is_url
from trainer.tokens.left_out import left_out, of_documents
from trainer.tokens.store import TokenStore, read_manifest

# Of a run that trained on the text, beside its checkpoints: what it is, and where.
_OF_RUN = (
    ("model", "final"),
    ("samples", "samples.jsonl"),
    ("report", "evaluation.json"),
    ("report", "evaluation.md"),
    ("report", "report.html"),
    ("served copies", "served"),
    ("what an earlier start left", "replaced"),
    ("replays, with texts", "replays"),
    ("exports", "exports"),
)


class Traces(NamedTuple):
    """What the text is looked for by."""

    run: str  # that forgets
    new: str  # that was made without the documents
    store: TokenStore
    dataset: str
    documents: list[tuple[int, int]]
    first_step: int | None  # of `run` that trained on them


class Trace(NamedTuple):
    what: str
    where: str  # on the volume, or a URL
    note: str = ""


def traces(volume: Path, of: Traces) -> list[Trace]:
    """Every place that still holds the text, or a model that was trained on it."""
    stores = list(_stores(volume, of))
    found = [*_dataset(volume, of), *(Trace("token store", f"tokens/{name}") for name in stores)]
    found += _cached(volume, of)
    trained = _trained_runs(volume, of, stores)
    for name in trained:
        found += _of_run(volume, name, of.first_step if name == of.run else 1)
    found += _of_new(volume, of)
    return sorted(found)


def _files(of: Traces) -> dict[int, str]:
    """SHA-256 of each source file that holds a document, by its index."""
    return {i: of.store.manifest.sources[i].get("sha256", "") for i, _ in of.documents}


def _dataset(volume: Path, of: Traces) -> Iterator[Trace]:
    for index in _files(of):
        source = of.store.manifest.sources[index]
        count = sum(file == index for file, _ in of.documents)
        where = f"{of.dataset}/{source['path']}"
        if not is_url(of.dataset) and (volume / of.dataset).is_file():
            where = of.dataset
        if not is_url(of.dataset) and not (volume / where).exists():
            continue
        others = source.get("documents", count) - count
        yield Trace("dataset", where, f"with {others} other documents" if others else "")


def _stores(volume: Path, of: Traces) -> Iterator[str]:
    digests = set(_files(of).values()) - {""}
    for folder in sorted((volume / "tokens").glob("[!.]*")):
        try:
            manifest, digest = read_manifest(folder)
        except DamagedError:
            continue
        holds = digests & {source.get("sha256", "") for source in manifest.sources}
        if holds or digest == of.store.digest:
            yield folder.name


def _cached(volume: Path, of: Traces) -> Iterator[Trace]:
    digests = set(_files(of).values()) - {""}
    for pattern in ("pieces/*/*/*", "copies/*/*"):
        for path in sorted((volume / "cache/tokens").glob(pattern)):
            if path.is_file() and path.name.split("-")[0] in digests:
                yield Trace("cached text", path.relative_to(volume).as_posix())


def _trained_runs(volume: Path, of: Traces, stores: list[str]) -> list[str]:
    """Runs that trained on the text, and those that began with such a run's model."""
    trained = [
        name
        for name in run_names(volume)
        if name != of.new and (record := _record(volume, name)) and _trained(record, of, stores)
    ]
    while derived := [
        name
        for name in run_names(volume)
        if name not in (*trained, of.new)
        and str((_record(volume, name) or {}).get("model", "")).split("/")[0] in trained
    ]:
        trained += derived
    return sorted(trained)


def _record(volume: Path, name: str) -> dict[str, Any] | None:
    try:
        return RunFolder(volume, name).record()
    except DamagedError:
        return {"tokens": "?"}


def _trained(record: dict[str, Any], of: Traces, stores: list[str]) -> bool:
    tokens = str(record.get("tokens", "")).removeprefix("tokens/")
    if tokens not in stores:
        return tokens == "?"  # it can't be read: nobody can say that it did not
    if tokens != of.store.folder.name:
        return True
    skip = SkipConfig(**record.get("request", {}).get("skip", {}))
    try:
        omitted = left_out(of.store, skip, of.store.folder.parents[1], of.dataset)
    except RequestError:
        return True
    return not set(of.documents) <= set(omitted.documents if omitted else ())


def _of_run(volume: Path, name: str, first: int | None) -> Iterator[Trace]:
    run = RunFolder(volume, name)
    for step in steps_there(run.checkpoints):
        if first is not None and step >= first:
            yield Trace("weights and optimizer state", f"{name}/checkpoints/{name_of(step)}")
    if first is None:
        return
    for what, file in _OF_RUN:
        if (run.root / file).exists():
            yield Trace(what, f"{name}/{file}")
    logs = (_record(volume, name) or {}).get("config", {}).get("logs", "logs")
    if (volume / logs / name).is_dir():
        yield Trace("logs", f"{logs}/{name}", f"of {name}: they name documents and show samples")


def _of_new(volume: Path, of: Traces) -> Iterator[Trace]:
    """Reports of the new run that begin prompts with held-out text."""
    if len(of_documents(of.store, of.documents).held_out):
        for name in ("evaluation.json", "evaluation.md", "report.html"):
            if (volume / of.new / name).exists():
                yield Trace("report", f"{of.new}/{name}", "may begin with held-out text of it")


# --- removing ---------------------------------------------------------------------------


def to_purge(run: str, found: list[Trace]) -> tuple[list[str], list[str]]:
    """Where it may be removed, and what stays with the reason.

    Other runs, files with other documents and object stores stay: they are named.
    """
    reasons = [(trace, _why_it_stays(run, trace)) for trace in found]
    gone = [trace.where for trace, reason in reasons if not reason]
    return gone, [f"{trace.where} ({reason})" for trace, reason in reasons if reason]


def remove_all(volume: Path, places: list[str]) -> None:
    """Remove files and folders of the volume; those that are gone already are no error."""
    for where in places:
        remove(volume / where)


def _why_it_stays(run: str, trace: Trace) -> str:
    if is_url(trace.where):
        return "it is in an object store: delete it there, with its old versions"
    if trace.what == "dataset" and trace.note:
        return f"it is a file {trace.note}: take the text out of it"
    if trace.what in ("dataset", "token store", "cached text"):
        return ""
    owner = trace.where.split("/")[-1 if trace.what == "logs" else 0]
    return "" if owner == run else f"it is of {owner}: let that run forget, or delete it"
