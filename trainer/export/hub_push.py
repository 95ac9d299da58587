"""Push a run's final model to a Hugging Face hub: once, again without effect, and resumable.

One commit holds everything, so readers see the old model or the new one. Large files go up
before it, each by its SHA-256: one that arrived before the push was ended is not sent again.
HF_ENDPOINT and HF_TOKEN are honoured, as in reading.
"""

import fnmatch
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx2  # what huggingface_hub itself speaks
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelInfo,
    constants,
    get_token,
)
from huggingface_hub.constants import is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RevisionNotFoundError
from huggingface_hub.utils import disable_progress_bars

from trainer.contract.errors import RequestError, StepError
from trainer.export.card import model_card
from trainer.export.finished import FinishedRun
from trainer.fetch.hub import HubId, parse_hub_id
from trainer.fetch.listing import RemoteFile, digest_of

CARD = "README.md"
# What an earlier push may have left, and would be read as part of this model.
_OURS = ("model*.safetensors", "model.safetensors.index.json", "adapter/*")
_FAILURES = (OSError, ValueError, RuntimeError, httpx2.HTTPError, OfflineModeIsEnabled)
Say = Callable[[str], None]


@dataclass(frozen=True)
class Target:
    """Where to: a repository, and a branch of it."""

    hub_id: HubId
    public: bool = False
    revision: str = ""

    @property
    def name(self) -> str:
        return f"{self.hub_id.id}@{self.revision}" if self.revision else self.hub_id.id


def target_of(name: str, public: bool, revision: str) -> Target:
    """The target of `--to-hub NAME`.

    Raises:
        RequestError: It is no name of a repository, or nothing could be pushed from here.
    """
    problems = []
    hub_id = parse_hub_id(name)
    if hub_id is None or "/" not in hub_id.id or hub_id.revision:
        problems.append(
            f"--to-hub is no repository's name (got {name!r}). It is OWNER/NAME, where OWNER is "
            "your account or an organization; a branch goes to --revision."
        )
    if is_offline_mode():
        problems.append("--to-hub needs the hub, and HF_HUB_OFFLINE forbids to ask it. Unset it.")
    elif get_token() is None:
        problems.append(
            "HF_TOKEN is not set, and no token is saved on this machine. Pushing needs one that "
            f"may write: make it at {constants.ENDPOINT}/settings/tokens, and export HF_TOKEN=..."
        )
    if problems:
        raise RequestError(*problems)
    assert hub_id is not None
    return Target(hub_id, public, revision)


def push(finished: FinishedRun, target: Target, say: Say, *, quiet: bool = True) -> str:
    """Bring the model, its adapter and its card to the hub; the address they have there.

    Args:
        quiet: Show no bars of progress.
    Raises:
        RequestError: The hub refuses it: the token, the name, or who may see it.
        StepError: The hub does not answer; the same command continues.
    """
    if quiet:
        disable_progress_bars()
    api = HfApi()
    try:
        info = _repository(api, target, say)
        operations = _operations(finished, info)
        for reason in finished.unknown:
            say(reason)
        address = f"{constants.ENDPOINT}/{target.hub_id.id}"
        if not operations:
            say(f"{target.name} has this model already: nothing to upload")
            return f"{address}/commit/{info.sha}"
        say(f"changing {', '.join(operation.path_in_repo for operation in operations)}")
        return _commit(api, target, finished, operations, info.sha)
    except _FAILURES as error:
        raise _as_ours(error, target) from error


def _repository(api: HfApi, target: Target, say: Say) -> ModelInfo:
    """The repository's branch as it is, both made where they are missing.

    Raises:
        RequestError: Others than the user meant can see it.
    """
    id = target.hub_id.id
    if not api.repo_exists(id):
        api.create_repo(id, private=not target.public, exist_ok=True)
        say(f"made the {'public' if target.public else 'private'} repository {id}")
    private = bool(api.model_info(id).private)
    if private == target.public:
        raise RequestError(
            f"--to-hub {id} is {'private' if private else 'public'} already, and you asked for "
            f"{'a public' if target.public else 'a private'} one. Change it on the hub, or "
            + ("leave --public out." if private else "say --public.")
        )
    try:
        return api.model_info(id, revision=target.revision or None, files_metadata=True)
    except RevisionNotFoundError:
        api.create_branch(id, branch=target.revision, exist_ok=True)
        say(f"made its branch {target.revision}")
        return api.model_info(id, revision=target.revision, files_metadata=True)


def _operations(
    finished: FinishedRun, info: ModelInfo
) -> list[CommitOperationAdd | CommitOperationDelete]:
    """What makes the branch hold this model: files that it lacks or has otherwise, and stale ones.

    Files that a person added beside the model stay.
    """
    there = {
        file.rfilename: RemoteFile(
            file.rfilename, file.size or 0, file.lfs.sha256 if file.lfs else file.blob_id or ""
        )
        for file in info.siblings or []
    }
    changed: dict[str, Path | bytes] = {
        name: path
        for name, path in finished.files.items()
        if not _same(path, finished.manifest.files[name], there.get(name))
    }
    card = model_card(finished).encode()
    known = there.get(CARD)
    if known is None or known.digest != _blob_id(card):
        changed[CARD] = card
    stale = {name for name in there if any(fnmatch.fnmatchcase(name, kind) for kind in _OURS)}
    return [
        *(CommitOperationAdd(name, content) for name, content in sorted(changed.items())),
        *(CommitOperationDelete(name) for name in sorted(stale - set(finished.files))),
    ]


def _same(path: Path, record: Mapping[str, object], remote: RemoteFile | None) -> bool:
    """Whether the hub has the file; a weight file's SHA-256 is known, and not worked out again."""
    if remote is None or remote.bytes != record["bytes"]:
        return False
    return remote.digest == record["sha256"] or digest_of(path, remote) == remote.digest


def _blob_id(content: bytes) -> str:
    """git's id of a small file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _commit(
    api: HfApi,
    target: Target,
    finished: FinishedRun,
    operations: list[CommitOperationAdd | CommitOperationDelete],
    parent: str | None,
) -> str:
    """Upload and commit; the commit's address. Another's commit meanwhile is not undone."""
    made = api.create_commit(
        target.hub_id.id,
        operations,
        commit_message=f"{finished.run.root.name}, step {finished.manifest.about.get('step')}",
        commit_description=f"Digest of the final model: {finished.manifest.digest}",
        revision=target.revision or None,
        parent_commit=parent,
    )
    return made.commit_url


def _as_ours(error: Exception, target: Target) -> StepError:
    """The error in the user's words; what trying again would not mend is a RequestError."""
    cause = error.__cause__ if isinstance(error.__cause__, HfHubHTTPError) else error
    status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else 0
    words = " ".join(str(cause).split())[:300] or type(cause).__name__
    if status in (401, 403):
        return RequestError(
            f"HF_TOKEN may not write to {target.name} (the hub at {constants.ENDPOINT} answered "
            f"{status}). Give it a token with the role write, of an account that OWNER knows."
        )
    if status in (409, 412):
        return StepError(
            f"{target.name} changed while this was uploaded ({words}). Run it again: what arrived "
            "is not sent again."
        )
    if 400 <= status < 500 and status not in (408, 429):
        return RequestError(f"--to-hub {target.name}: the hub refuses it ({words}). Correct it.")
    return StepError(
        f"the hub at {constants.ENDPOINT} does not take {target.name} ({words}). Run it again: "
        "what arrived is not sent again."
    )
