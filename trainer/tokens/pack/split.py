"""Which text is held out: a function of each document's own content.

    share        of the tokens that is held out
    whole_bytes  the longest document that stays in one piece: 1/20 of the share of the
                 dataset's bytes, these rounded down to a power of two

A document of at most `whole_bytes` is held out when the hash of its text is below the
share: 200 / share of them, or more, come out near it by themselves.

A longer one would miss it. It is divided into blocks of 65,536 / share tokens, and
each block into windows as long as its share, cut at boundary tokens; held out is the
window with the smallest hash of its ids. So every long document, and every block of it,
gives its share: three novels at `train_ratio=0.9` hold out a tenth of each.

Adding or removing files moves no other document: neither name, place nor neighbours
count. What does is the size of the dataset, in powers of two (documents between the old
and the new `whole_bytes`), and bad luck: where the documents that are there miss the share
by more than a fifth, which a few hundred can, the level moves in steps of a quarter
(`amended`), and with it the documents between two steps.
"""

import hashlib
from dataclasses import dataclass, replace

import numpy as np

_WHOLE_PER_SHARE = 20
_WINDOW_TOKENS = 65_536
_MOST_BLOCK_TOKENS = 1 << 22
_LEAST_WINDOW_TOKENS = 8
_MOST_INSIDE_TOKENS = 1_024
"""In a row, that each begin inside a character: text has a handful."""
_HASHED_TOKENS = 1_024
"""Of a window: enough to tell it from all others."""
_TOLERANCE = 0.18  # of the share; a fifth is promised
_STEPS = 1.25 ** np.array(sorted(range(-20, 21), key=lambda k: (abs(k), -k)))


@dataclass(frozen=True, kw_only=True)
class Split:
    """How the stream is divided in two."""

    share: float
    """Of the tokens that is held out, 0 to 1."""
    dataset_bytes: int
    """Of all files as they are stored."""
    boundary: int | None
    begins_inside: np.ndarray
    """Tokens that begin inside a character, by id: see Vocabulary."""
    level: float = -1.0
    """Documents with a smaller hash are held out; -1: the share."""
    surely: int = -1
    """Hash of a document that holds out something in any case; -1: none does."""

    @property
    def block(self) -> int:
        """Tokens of a long document that are decided together."""
        return int(min(_MOST_BLOCK_TOKENS, _WINDOW_TOKENS / max(self.share, 1e-9)))

    @property
    def whole_bytes(self) -> int:
        """Length of the longest document that is not cut."""
        rounded = 1 << max(0, self.dataset_bytes.bit_length() - 1)
        return int(self.share * rounded / _WHOLE_PER_SHARE)

    def is_held(self, hashes: np.ndarray) -> np.ndarray:
        """Which documents that are not cut are held out, by their hashes; shape of `hashes`."""
        level = self.share if self.level < 0 else self.level
        below = hashes / 2.0**64 < level if level < 1 else np.ones(len(hashes), bool)
        return below | (hashes == self.surely) if self.surely >= 0 else below

    def is_long(self, num_bytes: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Which documents are cut, of those with so much text; nothing is without a share."""
        return ((num_bytes > self.whole_bytes) | (tokens > self.block)) & (self.share > 0)

    def window(self, ids: np.ndarray, document_hash: int = -1) -> tuple[int, int]:
        """What of a block is held out, from where to where; nothing: both 0.

        Args:
            ids: The whole block, shape (tokens,).
            document_hash: Of the document that it begins.
        """
        if self.share >= 1:
            return 0, len(ids)
        size, drawn = self.share * len(ids), _fractions(ids)
        least = min(_LEAST_WINDOW_TOKENS, len(ids))
        if size < least:  # so short only now and then, by the block's own hash
            if drawn[0] >= size / least and document_hash != self.surely:
                return 0, 0
            size = least
        size = round(size)
        count = len(ids) // size
        shift = int(drawn[1] * (len(ids) - count * size))
        begins = range(shift, shift + count * size, size)
        begin = min(begins, key=lambda at: _fractions(ids[at : at + size]))
        return self._snap(ids, begin, size), self._snap(ids, begin + size, size)

    def _snap(self, ids: np.ndarray, position: int, size: int) -> int:
        """The place after the next boundary token, unless it is far; never inside a character."""
        if position in (0, len(ids)):
            return position
        near = ids[position : position + max(_LEAST_WINDOW_TOKENS, size // 10)]
        if self.boundary is not None:
            at = np.flatnonzero(near == self.boundary)
            if len(at):
                return position + int(at[0]) + 1
        rest = ids[position : position + _MOST_INSIDE_TOKENS]
        return position + int(np.argmin(np.append(self.begins_inside[rest], False)))

    def edge(self, ids: np.ndarray) -> int:
        """Where a block of `ids`, which are more than one, ends: never inside a character."""
        before = ids[self.block : max(0, self.block - _MOST_INSIDE_TOKENS) : -1]
        inside = self.begins_inside[before]
        return self.block - (0 if inside.all() else int(np.argmin(inside)))


class ShareCount:
    """Whether the share is met, and what to change where it is not."""

    def __init__(self, split: Split) -> None:
        self.split = split
        self._levels = np.array(sorted({min(split.share * step, 1.0) for step in _STEPS}))
        self._between = np.zeros(len(self._levels) + 1)  # whole documents' tokens, by level
        self._smallest = -1

    def add(self, hashes: np.ndarray, tokens: np.ndarray, long: np.ndarray) -> None:
        """Count documents, shape (documents,) each."""
        if len(hashes):
            smallest = int(hashes.min())
            self._smallest = smallest if self._smallest < 0 else min(self._smallest, smallest)
            place = np.searchsorted(self._levels, hashes[~long] / 2.0**64, side="right")
            self._between += np.bincount(place, tokens[~long], len(self._between))

    def amended(self, held: int, total: int, num_contexts: int) -> Split | None:
        """The split that meets the share, or None where this one does.

        Args:
            held: Tokens that are held out.
            total: All tokens.
            num_contexts: All contexts; of twenty one must be held out.
        """
        share = self.split.share
        if not 0 < share < 1 or not total:
            return None
        below = dict(zip(self._levels, np.cumsum(self._between)[:-1], strict=True))
        others = held - below[share]  # of documents that are cut
        missed = {
            level: abs(below[level] + others - share * total)
            for level in (min(share * step, 1.0) for step in _STEPS)
        }
        near = (level for level in missed if missed[level] <= _TOLERANCE * share * total)
        level = next(near, min(missed, key=missed.__getitem__))
        none = not below[level] + others and num_contexts >= 20
        if level == share and not none:
            return None
        return replace(self.split, level=level, surely=self._smallest if none else -1)


def _fractions(ids: np.ndarray) -> tuple[float, float]:
    """Two numbers from 0 to 1, drawn from the content of `ids`."""
    digest = hashlib.blake2b(ids[:_HASHED_TOKENS].astype("<u4").tobytes(), digest_size=8).digest()
    first, second = np.frombuffer(digest, "<u4") / 2.0**32
    return float(first), float(second)
