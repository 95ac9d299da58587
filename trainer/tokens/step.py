"""The tokenize step: find the store that the request describes, or make it.

    python -m trainer tokenize CONFIG.json

A store is found by its key, which is made from content: the files' digests, the
tokenizer's and the options. Making it resumes from the files that were encoded before.
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
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.contract import events
from trainer.contract.addresses import without_query
from trainer.contract.checkpoints import remove
from trainer.contract.errors import DamagedError, RequestError, StepError
from trainer.contract.files import sync, writer_name
from trainer.contract.locks import only_one
from trainer.contract.step_configs import TokenizeConfig
from trainer.contract.volume import path_on_volume
from trainer.contract.wording import skipped_words
from trainer.steps import StepResult
from trainer.tokens import store as stores
from trainer.tokens.chat.shapes import (
    as_arrays,
    in_words,
    is_of_records,
    record_key,
    record_options,
    shapes_of,
)
from trainer.tokens.encode.vocabulary import tokenizer_digest
from trainer.tokens.packed.options import PACKED_FORMAT, packed_options
from trainer.tokens.step_result import step_result
from trainer.tokens.store import TokenStore, read_manifest
from trainer.tokens.text.digests import DigestMemory, nearest
from trainer.tokens.text.kept_listing import list_anew, list_once
from trainer.tokens.text.records import JSONL_FORMAT
from trainer.tokens.text.sources import READ, Source, SourceList, in_order
from trainer.tokens.text.unread_files import left_out_words

if TYPE_CHECKING:
    from trainer.tokens.encode.crew import Crew
    from trainer.tokens.store_request import StoreRequest

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
        return _with_left_out(config, _run(config, started))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM):
            raise RequestError(
                f"volume can't be written (got {error}). The store needs about half as many "
                "bytes as the text, twice while it is made. Make room, or make it writable."
            ) from error
        if error.errno in (errno.ENOENT, errno.ESTALE):
            raise StepError(
                f"a file went away while tokens were made (got {error}). Nothing may delete from "
                "cache/ or tokens/ meanwhile. Run it again: it resumes from what is there."
            ) from error
        raise


def _with_left_out(config: TokenizeConfig, made: StepResult) -> StepResult:
    """The result, with what `skip` leaves out: what names nothing is refused before training."""
    if config.skip.is_empty:
        return made
    from trainer.tokens.left_out import left_out

    store = TokenStore.open(path_on_volume(config.volume, "tokens", made.result["store"]))
    found = left_out(store, config.skip, config.volume, config.dataset)
    assert found is not None
    words = f"{made.message} To be left out of training: {skipped_words(found.figures)}."
    result = {**made.result, "left_out": found.figures}
    return replace(made, result=result, message=words)


def _run(config: TokenizeConfig, started: float) -> StepResult:
    return _run_mixture(config, started) if config.data.is_mixture else _run_one(config, started)


def _run_mixture(config: TokenizeConfig, started: float) -> StepResult:
    """The store of several folders, from a store of each."""
    from trainer.tokens.mixture.making import make_mixture, mixture_key
    from trainer.tokens.mixture.parts import part_configs

    volume, parts, made = Path(config.volume), [], []
    for part, of_part in part_configs(config):
        one = _run_one(of_part, time.monotonic())
        events.say(f"{part.name}: {one.message}")
        parts.append(part)
        made.append(TokenStore.open(volume / one.result["store"]))
    key = mixture_key(parts, made, config.random_seed)
    folder = volume / "tokens" / f"{store_name(config.dataset)}-{key}"
    memory = _digest_memory(volume, config.dataset)
    waiting = "Another process is mixing these tokens. Waiting for it."
    with only_one(volume / CACHE / "locks" / folder.name, waiting):
        if not config.retokenize and (found := _verified(folder, memory, config.paranoid)):
            return step_result(volume, found, started, reused=True)
        with _beside(folder) as beside:
            make_mixture(beside, key, parts, made, config.random_seed)
        store = TokenStore.open(folder)
        memory.vouch_for(folder / name for name in store.manifest.files)
    return step_result(volume, store, started, reused=False)


def _run_one(config: TokenizeConfig, started: float) -> StepResult:
    arrays = config.data.is_of_records
    sources, kept = list_once(config.volume, config.dataset, config.listing, arrays)
    try:
        return _found_or_made(config, sources, kept, started)
    except StepError as error:
        if not kept:
            raise
        events.notice(f"{error} The dataset is listed again.")
    sources = list_anew(config.volume, config.dataset, config.listing, arrays)
    return _found_or_made(config, sources, False, started)


def _found_or_made(
    config: TokenizeConfig, listed: SourceList, kept: bool, started: float
) -> StepResult:
    """The store of these files, which were listed by an earlier step if `kept`."""
    volume, left_out = Path(config.volume), listed.left_out
    if left_out:
        events.say(f"Left out of the dataset: {left_out_words(left_out)}. {READ}")
    model = path_on_volume(volume, "model", config.model)
    tokenizer = model
    if config.tokenizer:
        tokenizer = path_on_volume(volume, "tokenizer", config.tokenizer)
    sources = in_order(listed, config.reorder, config.random_seed)
    memory = _digest_memory(volume, config.dataset)
    # Its own: another process on this dataset ends, and takes its copies along, when it likes.
    copies = volume / CACHE / "copies" / f"{memory.path.stem}-{writer_name()}"
    token_digest = tokenizer_digest(tokenizer)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, copies, ignore_errors=True)
        crew = None
        exported = volume / CACHE / "tokenizers" / f"{token_digest}.json"
        if memory.unread_bytes(sources, config.paranoid) > _MANY_BYTES and exported.is_file():
            from trainer.tokens.encode.crew import Crew

            crew = stack.enter_context(Crew(exported, config.workers))
            crew.start()  # it loads the tokenizer while the files are read for their digests
        digests = memory.of(
            sources, copies, config.text_field, config.paranoid, kept, config.data.shape
        )
        pairs = zip(sources, digests, strict=True)
        sources = [nearest(source, digest, copies) for source, digest in pairs]
        shapes = shapes_of(config, sources, digests, left_out)
        if is_of_records(shapes):
            sources = as_arrays(sources, shapes)
        options = store_options(config, sources, shapes, tokenizer)
        key = store_key(sources, digests, token_digest, options, shapes)
        folder = volume / "tokens" / f"{store_name(config.dataset)}-{key}"
        if not config.retokenize and (found := _verified(folder, memory, config.paranoid)):
            return step_result(volume, found, started, reused=True)
        waiting = "Another process is making these tokens. Waiting for it."
        with only_one(volume / CACHE / "locks" / folder.name, waiting):
            if not config.retokenize and (found := _verified(folder, memory, config.paranoid)):
                return step_result(volume, found, started, reused=True)
            from trainer.tokens.store_request import StoreRequest

            asked = StoreRequest(
                config=config,
                key=key,
                options=options,
                sources=sources,
                digests=digests,
                shapes=shapes,
                tokenizer=tokenizer,
                token_digest=token_digest,
                left_out=left_out,
            )
            with _beside(folder) as beside:
                _make(asked, beside, crew)
            store = TokenStore.open(folder)
            memory.vouch_for(folder / name for name in store.manifest.files)
    return step_result(volume, store, started, reused=False)


def _make(asked: "StoreRequest", folder: Path, crew: "Crew | None") -> None:
    """Make the store in `folder`, by what its text is."""
    # What makes a store loads numpy and more, each kind its own; finding one does not.
    if is_of_records(asked.shapes):
        from trainer.tokens.chat import making as chats

        events.say(f"Files by what their records are: {in_words(asked.shapes)}.")
        chats.make_store(asked, folder)
        return
    from trainer.tokens.pack import making as streams
    from trainer.tokens.pack import reference

    if reference.is_token_file(asked.config.dataset):
        reference.make_store(asked, folder)
    elif asked.config.data.packing:
        from trainer.tokens.packed import making as documents

        documents.make_store(asked, folder, crew)
    else:
        streams.make_store(asked, folder, crew)


# --- what a store is named by -----------------------------------------------------------


def store_options(
    config: TokenizeConfig, sources: list[Source], shapes: list[str], tokenizer: Path
) -> dict[str, Any]:
    """The options that can change a byte; those that can't here are None.

    Raises:
        RequestError: Chats are to be rendered, and there is no template for them.
    """
    order = "name_ascending" if config.reorder in ("", "none") else config.reorder
    if is_of_records(shapes):
        from trainer.tokens.chat.templates import template_texts

        packed = {"packing": PACKED_FORMAT} if config.data.packing else {}
        return record_options(config, template_texts(config, tokenizer), order) | packed
    drawn = order in ("random", "shuffle")
    keyed = any(source.kind != "text" for source in sources)
    options = {
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
        **({"bos": config.data.bos} if config.data.bos else {}),
    }
    return packed_options(options, config.data) if config.data.packing else options


def store_key(
    sources: list[Source],
    digests: list[str],
    token_digest: str,
    options: dict[str, Any],
    shapes: list[str],
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
    key = digest.hexdigest()[:16]
    return record_key(key, shapes) if is_of_records(shapes) else key


def store_name(dataset: str) -> str:
    """The dataset as a part of a folder's name."""
    return (
        re.sub(r"[^A-Za-z0-9._-]+", "-", without_query(dataset).rstrip("/")).strip("-.")[-80:]
        or "dataset"
    )


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
        for name in manifest.files:
            path, entry = folder / name, manifest.digests[name]
            stores.check_file(path, entry, verify="size")
            if paranoid or not memory.knows(path):
                stores.check_file(path, entry, verify="full")
    except DamagedError as error:
        events.notice(f"{error} It is made again.")
        return None
    memory.vouch_for(folder / name for name in manifest.files)
    with contextlib.suppress(OSError):
        os.utime(folder)  # tells prune.py that it is in use
    return TokenStore(folder, manifest, digest)


@contextlib.contextmanager
def _beside(folder: Path) -> Iterator[Path]:
    """A folder to make the store in, which takes its place when all went well."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside, before = folder.with_name(f".{folder.name}"), folder.with_name(f".{folder.name}.old")
    for left in (beside, before):  # by one that was killed: the lock is ours
        remove(left)
    beside.mkdir()
    try:
        yield beside
        if folder.exists():
            folder.rename(before)
        beside.rename(folder)
        sync(folder.parent)
        remove(before)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
