"""Keep what serves on a cluster where a run that starts over leaves it alone.

    {run_name}/served/{digest}/     the files of one `final/`, by 16 digits of its digest

A pod may start long after its revision was made: somebody asks again, a node was drained.
`final/` may hold another model by then, or none. Hard links, where the volume has them,
take no space. Loads no torch.
"""

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.contract import service_history as history
from trainer.contract.checkpoints import clear_parts, delete
from trainer.contract.errors import RequestError
from trainer.contract.files import link_or_copy, sync, writer_name
from trainer.contract.run_folder import RunFolder
from trainer.contract.sealed_folder import MANIFEST, file_record, read_manifest

DAY_SECONDS = 24 * 3600


def keep(run: RunFolder, model: Path) -> Path:
    """Have the model's files in its folder of `served/`, and return that.

    The folder is filled and mended file by file, never swapped: servers have it mounted.

    Args:
        model: A sealed folder of the run, or its kept one already.
    """
    manifest = read_manifest(model)
    place = run.served_model(manifest.digest)
    if place != model:
        files = [path for path in model.rglob("*") if path.is_file()]
        # Until the manifest is there, nothing takes the folder for a model.
        for path in sorted(files, key=lambda path: (path.name == MANIFEST, path)):
            name = path.relative_to(model)
            _have(path, place / name, manifest.files.get(name.as_posix()))
        for folder in [place, *(path for path in place.rglob("*") if path.is_dir())]:
            sync(folder)
        sync(place.parent)
    os.utime(place)  # see `drop_unneeded`
    return place


def drop_unneeded(run: RunFolder, digest: str) -> None:
    """Delete kept models, apart from the one that serves, the one before, and `digest`.

    Call it only before a revision is made. One that was asked for within a day stays, too:
    its server may be finishing its last answers, or be waiting for its check.
    """
    clear_parts(run.served)
    served = history.served(run)
    needed = [digest, *(entry["model_digest"] for entry in served[-1:])]
    with contextlib.suppress(RequestError):  # nothing served before
        needed.append(history.previous(run)["model_digest"])
    kept = {run.served_model(each) for each in needed}
    for place in run.served.glob("*"):
        if place not in kept and time.time() - place.stat().st_mtime > DAY_SECONDS:
            delete(place)


def _have(path: Path, target: Path, record: Mapping[str, Any] | None) -> None:
    """Have the file at `target`, whole after a crash, too; nothing where it is there."""
    if _is_there(path, target, record):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{writer_name()}")
    link_or_copy(path, beside)
    sync(beside)
    os.replace(beside, target)


def _is_there(path: Path, target: Path, record: Mapping[str, Any] | None) -> bool:
    if not target.exists():
        return False
    if path.samefile(target):
        return True
    expected = record or file_record(path)  # the manifest names neither itself nor later files
    return target.stat().st_size == expected["bytes"] and file_record(target) == expected
