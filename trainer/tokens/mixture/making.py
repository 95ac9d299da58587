"""Make the store of a mixture from those of its parts: contexts of each, as often as it takes.

Its `parts` are a ledger: of each folder `name`, `share`, `replay` (whether it is that), `store`,
`contexts` and `tokens` (trained ones, that there are to train on), `taken` (trained tokens that an
epoch takes), `repeated` (of them those that it takes again), `left_out` (those that it does not
take) and `held_out` (from which context to which). So for each

    taken = tokens + repeated - left_out

Held-out contexts are all of each part; of replay as many as the others have together, at even
distances. The files' rows in `sources` are those of the parts' own stores.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trainer.tokens import store as stores
from trainer.tokens.mixture.shares import Wanted, all_taken, interleaved
from trainer.tokens.pack.build import HashedFile
from trainer.tokens.store import DOCUMENT, MASK, Manifest, TokenStore

FORMAT = 1
_IDS_AT_ONCE = 1 << 21


class Rows(NamedTuple):
    """Contexts of a mixture, in order."""

    part: np.ndarray
    """Number of the part that each is of."""
    context: np.ndarray
    """Of each in its part's store."""


def mixture_key(parts: Sequence[Wanted], made: Sequence[TokenStore], seed: int) -> str:
    """What the mixture's bytes are made from, as 16 hex digits."""
    named = [[*part, store.digest] for part, store in zip(parts, made, strict=True)]
    return hashlib.sha256(json.dumps(["mixture", FORMAT, named, seed]).encode()).hexdigest()[:16]


def make_mixture(
    folder: Path, key: str, parts: Sequence[Wanted], made: Sequence[TokenStore], seed: int
) -> None:
    """Make the whole store in `folder`, the manifest last.

    Raises:
        RequestError: A part has nothing to train on, or a share of less than a context.
    """
    counted = [store.trained_of_each(slice(store.manifest.num_train_contexts)) for store in made]
    taken = all_taken(parts, counted, seed)
    held = _held_out(parts, made)
    part, number = interleaved([len(contexts) for contexts in taken])
    trained = np.empty(len(part), np.int64)
    for at, contexts in enumerate(taken):
        trained[part == at] = contexts[number[part == at]]
    rows = Rows(
        np.concatenate([part, np.repeat(np.arange(len(made)), [len(h) for h in held])]),
        np.concatenate([trained, *held]),
    )
    digests = _write(folder, made, rows)
    table = _table(parts, made, counted, taken, held)
    manifest = _manifest(made, parts, rows, len(part), table)
    stores.write_manifest(folder, replace(manifest, key=key, digests=digests))


def _held_out(parts: Sequence[Wanted], made: Sequence[TokenStore]) -> list[np.ndarray]:
    """Held-out contexts of each part."""
    found = [
        np.arange(store.manifest.num_train_contexts, store.manifest.num_contexts) for store in made
    ]
    own = sum(len(h) for h, part in zip(found, parts, strict=True) if not part.is_replay)
    return [
        held[np.arange(own) * len(held) // own] if part.is_replay and len(held) > own > 0 else held
        for held, part in zip(found, parts, strict=True)
    ]


def _write(folder: Path, made: Sequence[TokenStore], rows: Rows) -> dict[str, dict[str, Any]]:
    """All files; the manifest's digests."""
    masked = any(MASK in store.manifest.digests for store in made)
    names = (*stores.FILES, MASK) if masked else stores.FILES
    files = {name: HashedFile(folder / name) for name in names}
    starts, first_files = _offsets(made)
    step = max(1, _IDS_AT_ONCE // made[0].manifest.context)
    for at in range(0, len(rows.part), step):
        some = Rows(rows.part[at : at + step], rows.context[at : at + step])
        files["tokens.bin"].write(_gathered(some, [store.contexts for store in made]))
        files["lengths.bin"].write(_gathered(some, [store.lengths for store in made]))
        begins = _gathered(some, [store.begins for store in made])
        files["begins.bin"].write(begins + starts[some.part])
        if masked:
            files[MASK].write(_masks(some, made))
    for store, start, first in zip(made, starts, first_files, strict=True):
        documents = np.array(store.documents, DOCUMENT)
        documents["start"] += start
        documents["file"] += first
        files["documents.bin"].write(documents)
    return {name: file.close() for name, file in files.items()}


def _offsets(made: Sequence[TokenStore]) -> tuple[np.ndarray, np.ndarray]:
    """Where each part's stream begins in that of all, and which is its first file."""
    ends = [
        max(
            int((store.begins + store.lengths).max(initial=0)),
            int(store.documents["start"].max(initial=0)) + 1,
        )
        for store in made
    ]
    files = [len(store.manifest.sources) for store in made]
    starts = np.append(0, np.cumsum(ends))[:-1].astype(np.uint64)
    return starts, np.append(0, np.cumsum(files))[:-1].astype(np.uint32)


def _gathered(rows: Rows, arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The rows of the parts' arrays, in order."""
    found = np.empty((len(rows.part), *arrays[0].shape[1:]), arrays[0].dtype)
    for part in np.unique(rows.part):
        of_part = rows.part == part
        found[of_part] = arrays[part][rows.context[of_part]]
    return found


def _masks(rows: Rows, made: Sequence[TokenStore]) -> np.ndarray:
    """The mask's bytes; of a part without one, all text but each first id."""
    width = made[0].manifest.context
    found = np.empty((len(rows.part), -(-width // 8)), np.uint8)
    for part in np.unique(rows.part):
        of_part = rows.part == part
        store, wanted = made[part], rows.context[of_part]
        bits = store.mask_bits
        if bits is None:
            places = np.arange(width)
            trained = (places > 0) & (places < store.lengths[wanted][:, None])
            found[of_part] = np.packbits(trained, axis=1, bitorder="little")
        else:
            found[of_part] = bits[wanted]
    return found


def _table(
    parts: Sequence[Wanted],
    made: Sequence[TokenStore],
    counted: Sequence[np.ndarray],
    taken: Sequence[np.ndarray],
    held: Sequence[np.ndarray],
) -> list[dict[str, Any]]:
    """The ledger of the parts."""
    rows = []
    begin = sum(len(contexts) for contexts in taken)
    for part, store, tokens, contexts, out in zip(parts, made, counted, taken, held, strict=True):
        in_epoch, once = int(tokens[contexts].sum()), int(tokens[np.unique(contexts)].sum())
        rows.append(
            {
                "name": part.name,
                "share": part.share,
                "replay": part.is_replay,
                "store": store.folder.name,
                "contexts": len(tokens),
                "tokens": int(tokens.sum()),
                "taken_contexts": len(contexts),
                "taken": in_epoch,
                "repeated": in_epoch - once,
                "left_out": int(tokens.sum()) - once,
                "held_out": [begin, begin + len(out)],
            }
        )
        begin += len(out)
    return rows


def _manifest(
    made: Sequence[TokenStore],
    parts: Sequence[Wanted],
    rows: Rows,
    num_train: int,
    table: list[dict[str, Any]],
) -> Manifest:
    """The first part's, with the figures of all."""
    first = made[0].manifest
    lengths = _gathered(rows, [store.lengths for store in made]).astype(np.int64)
    each = [store.trained_of_each(slice(None)) for store in made]
    trained = _gathered(rows, each)
    totals: Counter[str] = Counter()
    for store in made:
        totals.update(store.manifest.totals)
    num_tokens, num_trained = int(lengths.sum()), int(trained.sum())
    of_mixture = {
        "trained_tokens": num_trained,
        "masked_tokens": num_tokens - num_trained,
        "held_out_trained_tokens": int(trained[num_train:].sum()),
    }
    chatting = next((store.manifest for store in made if store.manifest.chat), first)
    return replace(
        first,
        num_contexts=len(lengths),
        num_train_contexts=num_train,
        num_tokens=num_tokens,
        num_padding=len(lengths) * first.context - num_tokens,
        options={**first.options, "mixture": FORMAT},
        totals={**totals, **of_mixture},
        sources=[
            {**source, "path": f"{part.name}/{source['path']}"}
            for part, store in zip(parts, made, strict=True)
            for source in store.manifest.sources
        ],
        left_out={
            f"{part.name}: {kind}": found
            for part, store in zip(parts, made, strict=True)
            for kind, found in store.manifest.left_out.items()
        },
        eot_token_id=chatting.eot_token_id,
        chat=chatting.chat,
        parts=table,
    )
