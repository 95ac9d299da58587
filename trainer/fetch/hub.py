"""Download a model from the Hugging Face hub: once, resumable, whole or not at all.

    models/{org}/{name}/             the model, with the marker `.fetched.json`
    models/{org}/.{name}.partial/    a download running or interrupted; the next one continues
    models/{org}/.{name}.lock        held by who downloads

Only safetensors and small text files are fetched. Each file's digest is compared
with the hub's before the folder is renamed into its place. HF_ENDPOINT and HF_TOKEN
are honoured.
"""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from trainer.contract.checkpoints import remove
from trainer.contract.errors import DamagedError, RequestError
from trainer.contract.events import notice
from trainer.contract.files import size_of, sync, write_atomically
from trainer.contract.json_files import read_object, readable_object
from trainer.contract.locks import only_one
from trainer.fetch.checks import refusing_bad_volume
from trainer.fetch.listing import Listing, RemoteFile, digest_of

MARKER = ".fetched.json"
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_HUB_ID = re.compile(rf"^(?P<id>{_PART}(/{_PART})?)(@(?P<revision>[A-Za-z0-9][\w./-]*))?$", re.A)
_COMMIT = re.compile(r"^[0-9a-f]{40}$")
# What is kept free beyond the download: a full disk stops everyone on the volume.
_SPARE_BYTES = 256 * 1024**2


class _File(TypedDict):
    bytes: int


class _Marker(TypedDict):
    files: dict[str, _File]


@dataclass(frozen=True)
class HubId:
    """`org/name` or `name`, at a revision where `@revision` follows."""

    id: str
    revision: str = ""

    @property
    def pinned(self) -> bool:
        return _COMMIT.match(self.revision) is not None

    def folder(self, *, tokenizer_only: bool) -> str:
        """Its place on the volume. Hub names hold neither `@` nor `--`."""
        at = f"@{self.revision.replace('/', '--')}" if self.revision else ""
        return f"models/{self.id}{at}" + ("--tokenizer" if tokenizer_only else "")


def parse_hub_id(text: str) -> HubId | None:
    """The hub id in `text`, or None where it can't be one."""
    match = _HUB_ID.match(text)
    if not match or "--" in text or ".." in text:
        return None
    return HubId(match["id"], match["revision"] or "")


def fetched_before(volume: Path, hub_id: HubId, *, tokenizer_only: bool) -> Path | None:
    """The whole folder of `hub_id` on the volume, or None; a model has its tokenizer with it."""
    for only in (False, True) if tokenizer_only else (False,):
        folder = volume / hub_id.folder(tokenizer_only=only)
        if _is_complete(folder):
            return folder
    return None


def fetch_from_hub(
    volume: Path, parameter: str, hub_id: HubId, *, tokenizer_only: bool, with_code: bool
) -> tuple[Path, bool]:
    """Download `hub_id`, or wait for who does; its folder, and whether it was done here.

    Args:
        volume: The volume's root.
        parameter: Which parameter named it, for errors.
        hub_id: What to fetch.
        tokenizer_only: Leave the weights out.
        with_code: Fetch the model's Python files too.
    Raises:
        RequestError: The hub has no such model, not for this token, or not as safetensors.
        StepError: The hub does not answer, or sends something damaged.
    """
    folder = volume / hub_id.folder(tokenizer_only=tokenizer_only)
    with refusing_bad_volume(volume):
        folder.parent.mkdir(parents=True, exist_ok=True)
        waiting = f"waiting for another run that downloads {hub_id.id}"
        with only_one(folder.with_name(f".{folder.name}.lock"), waiting):
            if _is_complete(folder):  # made by the process that held the lock
                return folder, False
            # Imports huggingface_hub, so only where it is needed.
            from trainer.fetch.hub_client import list_model

            listing = list_model(
                parameter, hub_id.id, hub_id.revision, weights=not tokenizer_only, code=with_code
            )
            _download(folder, parameter, listing)
    return folder, True


def _is_complete(folder: Path) -> bool:
    """Whether `folder` is whole: as downloaded, or put there by a user (it has no marker)."""
    if not folder.is_dir():
        return False
    try:
        marker = read_object(folder / MARKER, _Marker)
    except DamagedError:
        return False  # the hub is asked what belongs there
    if marker is None:
        return (folder / "config.json").is_file() or (folder / "tokenizer.json").is_file()
    return all(_has(folder / name, file["bytes"]) for name, file in marker["files"].items())


def _has(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _download(folder: Path, parameter: str, listing: Listing) -> None:
    from trainer.fetch.hub_client import download_files

    partial = folder.with_name(f".{folder.name}.partial")
    if folder.exists():
        # It was whole once and lost something: keep what is good.
        _put_back_to_partial(folder, partial)
    partial.mkdir(exist_ok=True)
    _check_room(partial, listing)
    download_files(partial, parameter, listing)
    if damaged := _delete_damaged(partial, listing.files):
        # Mostly the remains of another commit, begun before the model was changed.
        notice(f"{', '.join(damaged)} not as the hub has it: downloaded again")
        download_files(partial, parameter, listing)
    if damaged := _delete_damaged(partial, listing.files):
        raise DamagedError(
            f"{', '.join(damaged)} of {listing.id} arrived damaged from the hub, twice "
            "(its digest is not the hub's). It was deleted; run again to fetch it again."
        )
    write_atomically(partial / MARKER, json.dumps(_marker(listing), indent=1))
    partial.rename(folder)
    sync(folder.parent)


def _put_back_to_partial(folder: Path, partial: Path) -> None:
    notice(f"{folder.name} is no longer whole: what is missing is downloaded again")
    shutil.rmtree(partial, ignore_errors=True)
    folder.rename(partial)
    marker = readable_object(partial / MARKER, _Marker) or {"files": {}}
    for name, file in marker["files"].items():
        if not _has(partial / name, file["bytes"]):
            (partial / name).unlink(missing_ok=True)
    remove(partial / MARKER)


def _check_room(partial: Path, listing: Listing) -> None:
    needed = sum(file.bytes for file in listing.files) - size_of(partial)
    free = shutil.disk_usage(partial).free
    if needed > 0 and needed + _SPARE_BYTES > free:
        raise RequestError(
            f"pvc is too full for {listing.id} (got {free / 2**30:.1f} GiB free). "
            f"The download takes {needed / 2**30:.1f} GiB more. Free or add space."
        )


def _delete_damaged(partial: Path, files: tuple[RemoteFile, ...]) -> list[str]:
    """Delete, and name, the files that are not what the hub's digests say."""
    damaged = []
    for file in files:
        path = partial / file.name
        if not _has(path, file.bytes) or digest_of(path, file) != file.digest:
            path.unlink(missing_ok=True)
            damaged.append(file.name)
    return damaged


def _marker(listing: Listing) -> dict[str, Any]:
    return {
        "format": 1,
        "id": listing.id,
        "commit": listing.commit,
        "files": {f.name: {"bytes": f.bytes, "digest": f.digest} for f in listing.files},
    }
