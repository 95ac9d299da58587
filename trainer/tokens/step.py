"""The tokenize step: find the store that the request describes, or make it.

    python -m trainer tokenize CONFIG.json

A store is found by its key, which is made from content: the files' digests, the
tokenizer's and the options. Making it goes on from the files that were encoded before.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from trainer import events
from trainer.config import TokenizeConfig
from trainer.durable import sync, writer_name
from trainer.errors import DamagedError, RequestError, StepError
from trainer.lock import only_one
from trainer.steps import StepResult
from trainer.tokens import store as stores
from trainer.tokens.digests import DigestMemory, nearest
from trainer.tokens.kept_listing import list_anew, list_once
from trainer.tokens.records import JSONL_FORMAT
from trainer.tokens.sources import Source, in_order
from trainer.tokens.store import Manifest, TokenStore, read_manifest
from trainer.tokens.vocabulary import tokenizer_digest
from trainer.volume_paths import path_on_volume

CACHE = "cache/tokens"
_HELD_OUT = 2
"""In the key of a store that holds text out: raised when other text would be."""
_MANY_BYTES = 4 << 20
"""Of text that is new: more is encoded by other processes, see crew.py."""


def run(config: TokenizeConfig) -> StepResult:
    """Make the store of `config`, or find it made.

    Raises:
        RequestError: The dataset, the tokenizer or a parameter is wrong, or the volume is
            full or not writable.
        Interrupted: A signal arrived; what was encoded is kept for the next time.
    """
    started = time.monotonic()
    try:
        return _run(config, started)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM):
            raise RequestError(
                f"volume can't be written (got {error}). The store needs about half as many "
                "bytes as the text, twice while it is made. Make room, or make it writable."
            ) from error
        if error.errno in (errno.ENOENT, errno.ESTALE):
            raise StepError(
                f"a file went away while tokens were made (got {error}). Nothing may delete from "
                "cache/ or tokens/ meanwhile. Run it again: it goes on from what is there."
            ) from error
        raise


def _run(config: TokenizeConfig, started: float) -> StepResult:
    sources, kept = list_once(config.volume, config.dataset, config.listing)
    try:
        return _found_or_made(config, sources, kept, started)
    except StepError as error:
        if not kept:
            raise
        events.notice(f"{error} The dataset is listed again.")
    sources = list_anew(config.volume, config.dataset, config.listing)
    return _found_or_made(config, sources, False, started)


def _found_or_made(
    config: TokenizeConfig, sources: list[Source], kept: bool, started: float
) -> StepResult:
    """The store of these files, which were listed by an earlier step if `kept`."""
    volume = Path(config.volume)
    model = path_on_volume(volume, "model", config.model)
    tokenizer = model
    if config.tokenizer:
        tokenizer = path_on_volume(volume, "tokenizer", config.tokenizer)
    sources = in_order(sources, config.reorder, config.random_seed)
    memory = _digest_memory(volume, config.dataset)
    # Its own: another process on this dataset ends, and takes its copies along, when it likes.
    copies = volume / CACHE / "copies" / f"{memory.path.stem}-{writer_name()}"
    token_digest = tokenizer_digest(tokenizer)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, copies, ignore_errors=True)
        crew = None
        exported = volume / CACHE / "tokenizers" / f"{token_digest}.json"
        if memory.unread_bytes(sources, config.paranoid) > _MANY_BYTES and exported.is_file():
            from trainer.tokens.crew import Crew

            crew = stack.enter_context(Crew(exported, config.workers))
            crew.start()  # it loads the tokenizer while the files are read for their digests
        digests = memory.of(sources, copies, config.text_field, config.paranoid, kept)
        options = store_options(config, sources)
        key = store_key(sources, digests, token_digest, options)
        folder = volume / "tokens" / f"{store_name(config.dataset)}-{key}"
        if not config.retokenize and (found := _verified(folder, memory, config.paranoid)):
            return _result(volume, found, started, reused=True)
        waiting = "Another process is making these tokens. Waiting for it."
        with only_one(volume / CACHE / "locks" / folder.name, waiting):
            if not config.retokenize and (found := _verified(folder, memory, config.paranoid)):
                return _result(volume, found, started, reused=True)
            # What makes a store loads numpy and more; finding one does not.
            from trainer.tokens import making, reference

            taken = reference.is_token_file(config.dataset)
            make_store = reference.make_store if taken else partial(making.make_store, crew=crew)
            pairs = zip(sources, digests, strict=True)
            sources = [nearest(source, digest, copies) for source, digest in pairs]
            with _beside(folder) as beside:
                make_store(config, beside, key, options, sources, digests, tokenizer, token_digest)
            memory.vouch_for(folder / name for name in stores.FILES)
    return _result(volume, TokenStore.open(folder), started, reused=False)


# --- what a store is named by -----------------------------------------------------------


def store_options(config: TokenizeConfig, sources: list[Source]) -> dict[str, Any]:
    """The options that can change a byte; those that can't here are None."""
    order = "name_ascending" if config.reorder in ("", "none") else config.reorder
    drawn = order in ("random", "shuffle")
    keyed = any(source.kind != "text" for source in sources)
    return {
        "sanitize": config.sanitize,
        "reorder": order,
        "random_seed": config.random_seed if drawn else None,
        "sampling": config.sampling,
        "eot_token": config.eot_token,
        "pad_token": config.pad_token,
        "boundary_token": config.boundary_token.replace("\\n", "\n"),
        "boundary_index": config.boundary_index,
        "context": config.context,
        "train_ratio": config.train_ratio,
        "text_field": config.text_field if keyed else None,
    }


def store_key(
    sources: list[Source], digests: list[str], token_digest: str, options: dict[str, Any]
) -> str:
    """What the store's bytes are made from, as 16 hex digits."""
    made_by: list[Any] = [stores.FORMAT, token_digest, options]
    if options["train_ratio"] < 1:
        made_by.append({"held_out": _HELD_OUT})
    if any(source.kind == "jsonl" for source in sources):
        made_by.append({"jsonl": JSONL_FORMAT})
    digest = hashlib.sha256(json.dumps(made_by).encode())
    for source, content in zip(sources, digests, strict=True):
        digest.update(b"\0" + os.fsencode(source.path) + b"\0" + content.encode())
    return digest.hexdigest()[:16]


def store_name(dataset: str) -> str:
    """The dataset as a part of a folder's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", dataset.rstrip("/")).strip("-.")[-80:] or "dataset"


def _digest_memory(volume: Path, dataset: str) -> DigestMemory:
    named = hashlib.sha256(dataset.encode()).hexdigest()[:16]
    return DigestMemory(volume / CACHE / "digests" / f"{named}.json")


# --- finding and replacing --------------------------------------------------------------


def _verified(folder: Path, memory: DigestMemory, paranoid: bool) -> TokenStore | None:
    """The store in `folder` if it is whole; its files are read unless the memory knows them."""
    try:
        manifest, digest = read_manifest(folder)
    except DamagedError as error:
        if folder.exists():
            events.notice(f"{error} It is made again.")
        return None
    try:
        for name in stores.FILES:
            path, entry = folder / name, manifest.digests[name]
            stores.check_file(path, entry, verify=False)
            if paranoid or not memory.knows(path):
                stores.check_file(path, entry, verify=True)
    except DamagedError as error:
        events.notice(f"{error} It is made again.")
        return None
    memory.vouch_for(folder / name for name in stores.FILES)
    with contextlib.suppress(OSError):
        os.utime(folder)  # tells prune.py that it is in use
    return TokenStore(folder, manifest, digest)


@contextlib.contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """A folder to make the store in, which takes its place when all went well."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside, before = folder.with_name(f".{folder.name}"), folder.with_name(f".{folder.name}.old")
    for left in (beside, before):  # by one that was killed: the lock is ours
        shutil.rmtree(left, ignore_errors=True)
    beside.mkdir()
    try:
        yield beside
        if folder.exists():
            folder.rename(before)
        beside.rename(folder)
        sync(folder.parent)
        shutil.rmtree(before, ignore_errors=True)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _result(volume: Path, store: TokenStore, started: float, reused: bool) -> StepResult:
    manifest, seconds = store.manifest, time.monotonic() - started
    total_bytes = sum(source["bytes"] for source in manifest.sources)
    name = store.folder.relative_to(volume).as_posix()
    totals = manifest.totals
    message = (
        f"{'Found' if reused else 'Made'} {name}: {manifest.num_contexts:,} contexts of "
        f"{manifest.context:,} ids from {len(manifest.sources):,} files in {seconds:.1f} s."
    )
    result = {
        "store": name,
        "digest": store.digest,
        "num_contexts": manifest.num_contexts,
        "num_train_contexts": manifest.num_train_contexts,
        "num_tokens": manifest.num_tokens,
        "num_padding": manifest.num_padding,
        "encoder": manifest.encoder,
        "files": len(manifest.sources),
        "documents": totals["documents"],
        "bytes": total_bytes,
        "seconds": round(seconds, 3),
        # Of a store that was there nothing was read: it has no speed.
        "megabytes_per_second": None if reused else round(total_bytes / 1e6 / seconds, 3),
        "repeated": totals["repeated"],
        "repeated_share": round(totals["repeated"] / max(1, manifest.num_tokens), 4),
        "dropped": _dropped(manifest),
    }
    return StepResult(result=result, message=message, reused=reused)


def _dropped(manifest: Manifest) -> dict[str, int]:
    """What is in no context, by reason; documents and lines are counted, else tokens."""
    names = ("empty_documents", "blank_lines", "boundaries", "sampled_out")
    return {name: manifest.totals[name] for name in names}
