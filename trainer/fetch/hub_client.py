"""The calls to the hub: list a model's files, and fetch them beside each other.

Threads and files of our own round huggingface_hub's single request, because its
`snapshot_download` (2.4) begins a file anew when it was killed, leaves what it had
on the disk, and ends on a signal only after the files it is at.
"""

import contextlib
import dataclasses
import fnmatch
import queue
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

import httpx2  # what huggingface_hub itself speaks
from huggingface_hub import HfApi, ModelInfo, constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers, disable_progress_bars

from trainer.contract.errors import RequestError, StepError
from trainer.contract.events import notice, progress
from trainer.fetch.listing import Listing, RemoteFile
from trainer.fetch.weights import INDEX, SINGLE, shard_names

CONFIG = "config.json"
NUM_THREADS = 4
ATTEMPTS = 5
FIRST_PAUSE_SECONDS = 0.5
PROGRESS_SECONDS = 1.0
_SMALL_FILES = ("*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja", "*.md", "LICENSE*")
_UNWANTED = ("pytorch_model*", "tf_model*", "flax_model*", "*.safetensors.index.json")
_FAILURES = (OSError, ValueError, httpx2.HTTPError)


def list_model(parameter: str, id: str, revision: str, *, weights: bool, code: bool) -> Listing:
    """Ask the hub which files the model has.

    Raises:
        RequestError: There is no such model, not for this token, or not as safetensors.
        StepError: The hub does not answer.
    """
    info = _model_info(parameter, id, revision)
    files = {
        file.rfilename: RemoteFile(
            file.rfilename, file.size or 0, file.lfs.sha256 if file.lfs else file.blob_id or ""
        )
        for file in info.siblings or []
    }
    wanted = _small_files(files, code)
    if weights:
        wanted += _weight_files(parameter, id, files)
    assert info.sha, "the hub names the commit of every revision"
    listing = Listing(id, info.sha, tuple(files[name] for name in sorted(wanted)))
    return _of_index(parameter, listing, files) if INDEX in wanted else listing


def _of_index(parameter: str, listing: Listing, files: dict[str, RemoteFile]) -> Listing:
    """The listing with the shards that the model's index names, which it is asked for."""
    index = _read_file(parameter, listing, files[INDEX])
    try:
        names = shard_names(index)
    except ValueError as error:
        raise RequestError(f"{parameter} {error} on the hub (got {listing.id}).") from error
    if missing := [name for name in names if name not in files]:
        raise RequestError(
            f"{parameter} lacks {len(missing)} of its {len(names)} weight files on the hub "
            f"(got {listing.id}, missing: {missing[0]}). Take another revision (MODEL@REVISION)."
        )
    wanted = sorted({*(file.name for file in listing.files), *names})
    return dataclasses.replace(listing, files=tuple(files[name] for name in wanted))


def _model_info(parameter: str, id: str, revision: str) -> ModelInfo:
    """The hub's answer, asked for again while the hub has trouble."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return HfApi().model_info(id, revision=revision or None, files_metadata=True)
        except _FAILURES as error:
            _refuse(parameter, id, revision, error)
            if attempt == ATTEMPTS:
                raise StepError(_unreachable(parameter, id, error)) from error
            notice(f"the hub has trouble ({_short(error)}), asking again")
            time.sleep(FIRST_PAUSE_SECONDS * 2 ** (attempt - 1))
    raise AssertionError("unreachable")


def _refuse(parameter: str, id: str, revision: str, error: Exception) -> None:
    """Raise RequestError where asking again would not help."""
    endpoint = constants.ENDPOINT
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
    if isinstance(error, RevisionNotFoundError):
        problem = (
            f"{parameter} has no such revision (got {revision!r} of {id}). "
            "It is a branch, tag or commit of the model's repository. Correct what follows the @."
        )
    elif isinstance(error, GatedRepoError) or status == 403:
        problem = (
            f"{parameter} is open only to who accepted its terms (got {id}). Accept them at "
            f"{endpoint}/{id}, and give the step that account's token as HF_TOKEN."
        )
    elif isinstance(error, RepositoryNotFoundError):
        problem = (
            f"{parameter} is neither a folder on the volume nor a model on the hub (got {id!r}, "
            f"asked at {endpoint}). Correct it; a private model needs a token in HF_TOKEN."
        )
    elif isinstance(error, OfflineModeIsEnabled):
        problem = (
            f"{parameter} is no folder on the volume (got {id!r}), and HF_HUB_OFFLINE forbids to "
            "ask the hub. Put the model on the volume, or unset it."
        )
    elif 400 <= status < 500 and status not in (408, 429):
        problem = (
            f"{parameter} can't be had from the hub (got {id!r}: {_short(error)}). Correct it."
        )
    else:
        return
    raise RequestError(problem) from error


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text[:300]


def _unreachable(parameter: str, id: str, error: Exception) -> str:
    return (
        f"{parameter} is no folder on the volume (got {id!r}), and the hub at "
        f"{constants.ENDPOINT} does not answer ({_short(error)}). Correct it, or try again."
    )


def _small_files(names: Iterable[str], code: bool) -> list[str]:
    """Config, tokenizer, licence and card; of a model that runs its own code, the code too."""
    patterns = (*_SMALL_FILES, "*.py") if code else _SMALL_FILES
    return [
        name
        for name in names
        if ("/" not in name or (code and name.endswith(".py")))
        and not name.startswith(".")
        and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
        and not any(fnmatch.fnmatchcase(name, pattern) for pattern in _UNWANTED)
    ]


def _weight_files(parameter: str, id: str, names: Iterable[str]) -> list[str]:
    """The one file of weights, else the index; which shards it names, only its text says."""
    names = list(names)
    if SINGLE in names:
        return [SINGLE]
    if INDEX in names:
        return [INDEX]
    raise RequestError(
        f"{parameter} has no safetensors weights on the hub (got {id}). Pickled weights can run "
        "any code when they are loaded. Take a revision that has safetensors (MODEL@REVISION, "
        "such as a conversion under refs/pr/), or convert them and put the folder on the volume."
    )


def download_files(folder: Path, parameter: str, listing: Listing) -> None:
    """Fetch what `folder` lacks of `listing`; a file that was begun is resumed.

    Raises:
        RequestError: The hub refuses to hand a file out.
        OSError, ValueError, httpx2.HTTPError: It could not be fetched.
    """
    disable_progress_bars()
    waiting: queue.SimpleQueue[RemoteFile] = queue.SimpleQueue()
    for file in sorted(listing.files, key=lambda file: -file.bytes):
        waiting.put(file)
    failures: list[Exception] = []

    def work() -> None:
        while not failures:
            try:
                file = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                _download_file(folder, listing, file)
            except _FAILURES as error:
                failures.append(error)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(NUM_THREADS)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        _report(folder, listing)
        _join(threads, PROGRESS_SECONDS)
    if failures:
        _refuse(parameter, listing.id, listing.commit, failures[0])
        raise failures[0]
    _report(folder, listing)


def _download_file(folder: Path, listing: Listing, file: RemoteFile) -> None:
    path = folder / file.name
    if path.is_file() and path.stat().st_size == file.bytes:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    url = hf_hub_url(listing.id, file.name, revision=listing.commit)
    # Large files are elsewhere; that place names itself, and does not get the hub's token.
    place = get_hf_file_metadata(url, retry_on_errors=True).location
    at_hub = urlsplit(place).netloc == urlsplit(url).netloc
    headers = build_hf_headers(token=None if at_hub else False)
    part = path.with_name(f".{path.name}.part")
    with open(part, "ab") as opened:
        http_get(
            place,
            opened,
            resume_size=opened.tell(),
            headers=headers,
            expected_size=file.bytes,
            displayed_filename=file.name,
        )
    part.rename(path)


def read_config(parameter: str, id: str, revision: str, *, weights: bool) -> bytes:
    """The model's config.json; nothing is kept.

    Args:
        weights: Whether its weights will be wanted: refused where there are none to be had.
    Raises:
        RequestError: There is no such model, not for this token, or without a config.json.
        StepError: The hub does not answer.
    """
    listing = list_model(parameter, id, revision, weights=weights, code=False)
    found = [file for file in listing.files if file.name == CONFIG]
    if not found:
        raise RequestError(
            f"{parameter} has no {CONFIG} on the hub (got {id}). Without it nobody knows what "
            "kind of model it is. Name another."
        )
    return _read_file(parameter, listing, found[0])


def _read_file(parameter: str, listing: Listing, file: RemoteFile) -> bytes:
    """A small file's content; nothing is kept."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            _download_file(Path(folder), listing, file)
        except _FAILURES as error:
            _refuse(parameter, listing.id, listing.commit, error)
            raise StepError(_unreachable(parameter, listing.id, error)) from error
        return (Path(folder) / file.name).read_bytes()


def _join(threads: Iterable[threading.Thread], seconds: float) -> None:
    """Wait until all have ended, at most `seconds`."""
    until = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))


def _report(folder: Path, listing: Listing) -> None:
    total = sum(file.bytes for file in listing.files)
    done = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # what is whole is renamed meanwhile
            if path.is_file():
                # Blocks, not length: parts may arrive out of order, with holes before them.
                status = path.stat()
                done += min(status.st_size, status.st_blocks * 512)
    progress(f"download {listing.id}", min(done, total), total, "bytes")
