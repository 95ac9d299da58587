"""List a dataset that is read through fsspec: an object store, a web server, an archive."""

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from trainer.contract.addresses import masked, without_query
from trainer.contract.errors import RequestError, StepError
from trainer.object_store import filesystem_of
from trainer.tokens.text.sources import Source, array_kind, kind_of, remote_stamp, shown

_WITH_HOSTS = ("http", "https", "ftp", "webhdfs")
_UNANSWERED = ("Connect", "Timeout", "gaierror", "NameResolution", "Disconnected")


def remote_sources(dataset: str) -> Iterator[Source]:
    """The files at an address; those that are not read have no kind.

    Raises:
        RequestError: There is no such place, or nothing here can read it.
        StepError: The place does not answer.
    """
    try:
        filesystem, single, root, found = _listed(dataset)
    # Each scheme is a library of its own, with errors of its own.
    except Exception as error:
        raise _refusal(dataset, error) from error
    # On the web the query string is no part of a file's name.
    web = "http" in filesystem.protocol or "https" in filesystem.protocol
    for location, info in found.items():
        named = without_query(location) if web else location
        path = os.path.basename(named) if single else location[len(root) :].lstrip("/")
        kind = kind_of(path) or (("text", "") if single else array_kind(path))
        if any(part.startswith(".") for part in path.split("/")) or path.endswith("/"):
            continue
        if kind:
            stamp = remote_stamp(info)
            url, size = filesystem.unstrip_protocol(location), int(info["size"] or 0)
            yield Source(shown(path), url, size, stamp, 0, kind[0], kind[1], True)
        else:
            yield Source(shown(path), "", 0, "", 0, "", "", True)


def _listed(dataset: str) -> tuple[Any, bool, str, Mapping[str, Any]]:
    """The file system, whether the address is one file, its path there, and what was found."""
    filesystem, root = filesystem_of(dataset)
    # A listing that was remembered would hide what changed since.
    filesystem.invalidate_cache()
    if filesystem.isfile(root):
        return filesystem, True, root, {root: filesystem.info(root)}
    found = filesystem.find(root, detail=True)
    if not found:
        _raise_if_unreachable(filesystem, root)
    return filesystem, False, root, found


def _raise_if_unreachable(filesystem: Any, root: str) -> None:
    """Where a listing is empty: raise what hindered it, which some libraries keep to themselves."""
    try:
        filesystem.info(root)
    except Exception as error:
        if _does_not_answer(error):
            raise


def _refusal(dataset: str, error: Exception) -> StepError:
    """What listing failed with, as a sentence."""
    reason = masked(" ".join(str(error).split()))[:300] or type(error).__name__
    if isinstance(error, StepError):
        return error
    if _does_not_answer(error):
        return StepError(
            f"dataset can't be listed: {_host(dataset)} does not answer (got {shown(dataset)!r}: "
            f"{reason}). Correct the address, give its credentials, or try again."
        )
    if isinstance(error, FileNotFoundError):
        return RequestError(
            f"dataset is not there (got {shown(dataset)!r}: {reason}). Correct the address."
        )
    if isinstance(error, store_errors()):
        return StepError(f"{shown(dataset)} can't be listed: {reason}")
    if isinstance(error, TypeError | NotImplementedError):
        reason = f"An address of its scheme needs more than that ({reason})"
    return RequestError(
        f"dataset can't be read (got {shown(dataset)!r}). {reason.rstrip('.')}. Name a folder on "
        "the volume, or an address that fsspec lists, as s3://BUCKET/FOLDER."
    )


def _host(dataset: str) -> str:
    """Who is asked, for people."""
    try:
        parts = urlsplit(dataset.rpartition("::")[2])
        if parts.scheme in _WITH_HOSTS and parts.hostname:
            return f"the host {parts.hostname}"
    except ValueError:
        return "its host"
    return f"the store behind {parts.scheme}://"


def _does_not_answer(error: BaseException | None) -> bool:
    """Whether a connection was not made, as far as the errors below this one tell."""
    while error is not None:
        names = [cls.__name__ for cls in type(error).__mro__]
        if any(word in name for name in names for word in _UNANSWERED):
            return True
        error = error.__cause__ or error.__context__
    return False


def recall(dataset: str, sources: Iterable[Source]) -> None:
    """Have s3 open files as in the process that listed them, without a request for each.

    It reads them with the ETag of the listing then, so one that changed since is refused.
    """
    filesystem, _ = filesystem_of(dataset)
    if "s3" not in filesystem.protocol:
        return  # another store says by itself what it needs to open a file
    folders: dict[str, list[dict[str, Any]]] = {}
    for source in sources:
        name = filesystem._strip_protocol(source.location)
        etag = source.stamp.partition("-")[2]
        info = {"name": name, "type": "file", "size": source.size, "ETag": etag}
        folders.setdefault(name.rpartition("/")[0], []).append(info)
    for folder, infos in folders.items():
        filesystem.dircache[folder] = infos


def store_errors() -> tuple[type[Exception], ...]:
    """What listing and reading fail with: of s3, without credentials, it is no OSError."""
    loaded = sys.modules.get("botocore.exceptions")  # where s3 was spoken
    return (OSError, loaded.BotoCoreError) if loaded else (OSError,)
