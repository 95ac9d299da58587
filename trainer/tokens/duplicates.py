"""Documents of a store that are the same, or nearly: MinHash over runs of five tokens.

Two documents are near if the runs that they share are most of those that they have together: 0.8
of them by default (Jaccard). 128 minima estimate that to 0.04; which pairs are compared is found
by bands of four minima, which miss one pair of a thousand at 0.8 and fewer above.

Written here since it is 60 lines of numpy: datasketch, the library of this kind, hashes each run
in Python. Measured: a million tokens take 1.5 s of a core.
Source: A. Broder, On the resemblance and containment of documents, 1997; Leskovec, Rajaraman and
Ullman, Mining of Massive Datasets, chapter 3.
"""

import glob
import hashlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from trainer.contract.errors import DamagedError, RequestError
from trainer.tokens.left_out import document_names
from trainer.tokens.store import TokenStore

NEAR = 0.8
RUN_TOKENS = 5
MINIMA, BAND = 128, 4
_AT_ONCE = 1 << 15  # runs, for which all hashes are in memory
_MOST_COMPARED = 64  # of a band: a hundred thousand forms filled in would make 5e9 pairs


class Group(NamedTuple):
    """Documents that are alike; the first is the one to keep."""

    names: list[str]
    """PATH#NUMBER, as `skip.documents` takes them."""
    similarity: float
    """Least of any of them with the first; 1: they are the same."""


@dataclass
class _Sketch:
    """What is kept of a document."""

    minima: np.ndarray
    digest: Any = field(default_factory=hashlib.sha256)


def duplicates(store: TokenStore, near: float = NEAR) -> list[Group]:
    """Groups of documents that are the same or nearly, in the order of the data.

    Args:
        near: Least similarity, 0 to 1; 1: the same ones alone.
    Raises:
        RequestError: Sampling left some of the text out.
    """
    if store.manifest.options.get("sampling", 100) != 100:
        raise RequestError(
            "duplicates can't be told in a store of which sampling left text out (got sampling="
            f"{store.manifest.options['sampling']}). Tokenize it with sampling=100."
        )
    sketches = _named_sketches(store)
    names = list(sketches)
    same: dict[bytes, list[int]] = defaultdict(list)
    for at, sketch in enumerate(sketches.values()):
        same[sketch.digest.digest()].append(at)
    firsts = [alike[0] for alike in same.values()]
    minima = [sketches[names[first]].minima for first in firsts]
    found = [
        (alike[0], Group([names[at] for at in alike], 1.0))
        for alike in same.values()
        if len(alike) > 1
    ]
    if near < 1 and firsts:
        found += [
            (firsts[group[0]], Group([names[firsts[at]] for at in group], similarity))
            for group, similarity in _near_groups(np.array(minima), near)
        ]
    return [group for _, group in sorted(found, key=lambda pair: pair[0])]


def _named_sketches(store: TokenStore) -> dict[str, _Sketch]:
    """Sketches by PATH#NUMBER; a mixture's are those of its parts' stores, which have all text."""
    if not store.manifest.parts:
        sketches = _sketches(store)
        documents = sorted(sketches)
        names = document_names(store, documents)
        return {name: sketches[d] for name, d in zip(names, documents, strict=True)}
    found: dict[str, _Sketch] = {}
    for part in store.manifest.parts:
        try:
            of_part = TokenStore.open(store.folder.with_name(part["store"]))
        except DamagedError as error:
            raise RequestError(
                f"tokens of {part['name']}, which the mixture was made of, are gone ({error}). "
                "Tokenize the mixture again."
            ) from error
        named = _named_sketches(of_part).items()
        found |= {f"{part['name']}/{name}": sketch for name, sketch in named}
    return found


def _sketches(store: TokenStore) -> dict[tuple[int, int], _Sketch]:
    sketches: dict[tuple[int, int], _Sketch] = {}
    for document, ids in _parts_of_documents(store):
        if not len(ids):
            continue
        sketch = sketches.setdefault(
            document, _Sketch(np.full(MINIMA, np.iinfo(np.uint64).max, np.uint64))
        )
        sketch.digest.update(ids.astype("<u4").tobytes())
        _take(sketch.minima, ids)
    return sketches


def _parts_of_documents(store: TokenStore) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
    """File and number of each part of a document, and its ids, without boundary tokens.

    Of these one between two contexts is in neither, which depends on what comes before.
    """
    order = np.argsort(store.begins, kind="stable")
    begins = store.begins[order].astype(np.int64)
    stops = begins + store.lengths[order]
    starts = store.documents["start"].astype(np.int64)
    ends = np.append(starts[1:], stops.max(initial=0))
    boundary = store.manifest.boundary_token_id
    for record, start, end in zip(store.documents, starts.tolist(), ends.tolist(), strict=True):
        pieces, position = [], start
        at = max(0, int(np.searchsorted(begins, start, side="right")) - 1)
        while at < len(begins) and begins[at] < end:
            first = max(position, int(begins[at]))
            last = min(end, int(stops[at]))
            if first < last:
                row = store.contexts[order[at]]
                pieces.append(np.array(row[first - begins[at] : last - begins[at]]))
                position = last
            at += 1
        ids = np.concatenate(pieces) if pieces else np.empty(0, np.uint16)
        yield (int(record["file"]), int(record["number"])), ids[ids != boundary]


def _take(minima: np.ndarray, ids: np.ndarray) -> None:
    """Take the runs of `ids` into a document's minima."""
    wide = ids.astype(np.uint64) + np.uint64(1)
    if len(wide) < RUN_TOKENS:
        wide = np.append(wide, np.zeros(RUN_TOKENS - len(wide), np.uint64))
    count = len(wide) - RUN_TOKENS + 1
    runs = np.zeros(count, np.uint64)
    for at in range(RUN_TOKENS):
        runs = _mixed(runs + wide[at : at + count])
    for at in range(0, count, _AT_ONCE):
        hashed = _mixed(runs[at : at + _AT_ONCE, None] ^ _SEEDS)
        np.minimum(minima, hashed.min(axis=0), out=minima)


def _mixed(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer (Steele et al., 2014)."""
    with np.errstate(over="ignore"):
        values = values + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


_SEEDS = _mixed(np.arange(MINIMA, dtype=np.uint64))


def _near_groups(minima: np.ndarray, near: float) -> Iterator[tuple[list[int], float]]:
    """Documents that are near a first one; each is in one group at most."""
    taken = np.zeros(len(minima), bool)
    pairs = _candidates(minima)
    for first in sorted(pairs):
        if taken[first]:
            continue
        others = np.array(sorted(at for at in pairs[first] if not taken[at]), np.int64)
        similar = (minima[others] == minima[first]).mean(axis=1)
        others, similar = others[similar >= near], similar[similar >= near]
        if len(others):
            taken[others] = True
            yield [first, *others.tolist()], float(similar.min())


def _candidates(minima: np.ndarray) -> dict[int, set[int]]:
    """By document the later ones that agree with it in all minima of some band."""
    pairs: dict[int, set[int]] = defaultdict(set)
    for band in range(0, MINIMA, BAND):
        buckets: dict[bytes, list[int]] = defaultdict(list)
        for at, row in enumerate(np.ascontiguousarray(minima[:, band : band + BAND])):
            bucket = buckets[row.tobytes()]
            for before in bucket:
                pairs[before].add(at)
            if len(bucket) < _MOST_COMPARED:
                bucket.append(at)
    return pairs


def describe(groups: list[Group]) -> list[str]:
    """The groups for people."""
    lines = [
        f"{'the same' if group.similarity == 1 else f'near ({group.similarity:.2f})'}: "
        + ", ".join(group.names)
        for group in groups
    ]
    return lines or ["no two documents are the same, or near"]


def as_skip(groups: list[Group]) -> dict[str, list[str]]:
    """The parameter `skip` that leaves out all but the first of each group."""
    again = dict.fromkeys(name for group in groups for name in group.names[1:])
    return {"documents": [glob.escape(name) for name in again]}
