"""Room on a volume, for people: what a run takes, what may go, and removing it."""

from collections.abc import Iterator
from pathlib import Path

from infra.backend import PlaceError
from infra.local.step_folder import writing
from trainer.contract.errors import RequestError, StepError
from trainer.contract.run_folder import RunFolder, damaged_records
from trainer.contract.topics import RetentionConfig
from trainer.contract.wording import format_bytes
from trainer.retention import nights
from trainer.retention.needed import who_needs
from trainer.retention.nights import Removable
from trainer.retention.removal import (
    bytes_of,
    finish_removals,
    folders_of,
    own_bytes,
    removals_cut_off,
    remove_run,
)
from trainer.retraining.series import Series, series_names


def refuse_needed(volume: Path, name: str) -> None:
    """Raise RequestError where anybody needs the run, naming each that does."""
    if reasons := who_needs(volume, name):
        raise RequestError(
            f"RUN is needed (got {name!r}), and was not removed.",
            *(f"{name}: {reason}" for reason in reasons),
        )


def contents(volume: Path, name: str) -> Iterator[str]:
    """What removing the run takes away, a line each, and what that frees."""
    root = RunFolder(volume, name).root
    paths = folders_of(volume, name)
    parts = [path for path in sorted(root.iterdir()) if path.is_dir()]
    for path in [*parts, *(path for path in paths if path != root)]:
        yield f"{format_bytes(bytes_of(path)):>10}  {path.relative_to(volume)}/"
    files = [path for path in root.iterdir() if path.is_file()]
    yield f"{format_bytes(sum(map(bytes_of, files))):>10}  {name}/, {len(files)} files"
    freed, there = own_bytes(paths), sum(map(bytes_of, paths))
    shared = f"; {format_bytes(there - freed)} stay in other folders" if freed < there else ""
    yield f"{format_bytes(freed):>10}  would be freed{shared}"


def remove(volume: Path, name: str) -> str:
    """Remove the run; a sentence that says so.

    Raises:
        RequestError: It is needed, or the volume takes no writes.
        StepError: Somebody began to work on it meanwhile.
    """
    refuse_needed(volume, name)
    freed = own_bytes(folders_of(volume, name))
    try:
        with writing(volume):
            removed = remove_run(volume, name)
    except PlaceError as error:
        raise RequestError(str(error)) from error
    if not removed:
        raise StepError(f"{name} is in use by now, and was not removed.")
    return f"{name} is removed: {format_bytes(freed)} freed"


def end_removals(volume: Path) -> list[str]:
    """End the removals that were cut off by a kill; a sentence for each run that is gone now."""
    cut_off = removals_cut_off(volume)
    finish_removals(volume)
    return [f"{name} is removed: that had begun before" for name in cut_off]


def prune(volume: Path, *, delete: bool, keep: RetentionConfig | None) -> str:
    """Delete what no run needs, or say what that would be; one line each, and the sum.

    Args:
        keep: What stays of the runs of each series of retrainings; None: runs are left alone.
    """
    found = [*_tokens(volume, delete), *(_runs(volume, delete, keep) if keep else ())]
    lines = [
        f"{item.size / 1e6:10,.1f} MB  {item.path.relative_to(volume)}  ({item.reason})"
        for item in found
    ]
    total = sum(item.size for item in found)
    done = "freed" if delete else "would be freed (--delete does it)"
    what = "No store or run is deleted" if keep else "No store is deleted"
    lines += [f"{what}: {damage}" for damage in damaged_records(volume)]
    return "\n".join([*lines, f"{total / 1e6:10,.1f} MB  {done}"])


def _tokens(volume: Path, delete: bool) -> list[Removable]:
    from trainer.tokens.prune import prune as prune_tokens

    return [Removable(*item) for item in prune_tokens(volume, dry_run=not delete)]


def _runs(volume: Path, delete: bool, keep: RetentionConfig) -> Iterator[Removable]:
    if delete:
        finish_removals(volume)
    else:
        for part in removals_cut_off(volume).values():
            yield Removable(part, own_bytes([part]), "a run whose removal was cut off")
    for name in series_names(volume):
        yield from nights.retain(Series(volume, name), keep, dry_run=not delete)
    yield from nights.old_logs(volume, dry_run=not delete)
