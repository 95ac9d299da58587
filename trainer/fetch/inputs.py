"""What the steps after fetch read on the volume, as short digests: parts of their works' keys.

Files are told by size and time of change, as listings are: reading a base model of many GB to
name a Job would take longer than the Job.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from trainer.contract.errors import DamagedError
from trainer.contract.files import short_digest
from trainer.contract.run_folder import RunFolder
from trainer.contract.sealed_folder import read_manifest
from trainer.contract.step_configs import FetchConfig
from trainer.contract.volume import is_url, path_on_volume
from trainer.tokens.text.sources import Source


def digests_of(
    config: FetchConfig, folders: Mapping[str, Path], sources: Iterable[Source]
) -> dict[str, str]:
    """Digests by name: dataset, model, tokenizer, prompt_file, final, report, services, template.

    Args:
        folders: Of the model, and of the tokenizer where it is another one.
        sources: The dataset's files. Empty digest: there is no such file.
    """
    run = RunFolder(config.volume, config.run_name) if config.run_name else None
    listed = [[one.path, one.size, one.stamp, one.modified_ns] for one in sources]
    return {
        "dataset": _digest(listed),
        "model": _digest([_listed(folders["model"]), _tensorized(config)]),
        "tokenizer": _digest(_listed(folders.get("tokenizer", folders["model"]))),
        "prompt_file": _content(_on_volume(config, "prompt_file")),
        "final": _final(run),
        "report": _content(run.report if run else None),
        "services": _content(run.services if run else None),
        **_template(config),
    }


def _on_volume(config: FetchConfig, parameter: str) -> Path | None:
    name = getattr(config, parameter)
    return path_on_volume(config.volume, parameter, name) if name else None


def _template(config: FetchConfig) -> dict[str, str]:
    """Of the file with a chat template, where one is named."""
    name = config.data.template
    path = path_on_volume(config.volume, "data.template", name) if name else None
    return {"template": _content(path)} if path else {}


def _listed(folder: Path) -> list[list[Any]]:
    """The folder's own files; hidden ones are notes of the fetch step."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name[0] != "."]
    named = sorted((path.relative_to(folder).as_posix(), path.stat()) for path in files)
    return [[name, status.st_size, status.st_mtime_ns] for name, status in named]


def _tensorized(config: FetchConfig) -> list[int]:
    """Size and time of change of tensorizer's file, where it is on the volume."""
    if not config.tensorizer_uri or is_url(config.tensorizer_uri):
        return []
    with contextlib.suppress(OSError):
        status = (Path(config.volume) / config.tensorizer_uri).stat()
        return [status.st_size, status.st_mtime_ns]
    return []


def _final(run: RunFolder | None) -> str:
    if run is None:
        return ""
    try:
        return read_manifest(run.final).digest
    except DamagedError:
        return ""


def _content(path: Path | None) -> str:
    try:
        return short_digest(path) if path else ""
    except FileNotFoundError:
        return ""


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode(errors="replace")).hexdigest()[:16]
