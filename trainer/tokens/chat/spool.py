"""Encoded records on disk, until it is known which of them are held out, and in which order."""

from array import array
from pathlib import Path
from typing import NamedTuple

import numpy as np

from trainer.tokens.chat.encoding import Encoded
from trainer.tokens.packed.best_fit import Groups


class Entries(NamedTuple):
    """What is known of each record, arrays of shape (records,)."""

    file: np.ndarray
    number: np.ndarray
    """In its file, from 1."""
    length: np.ndarray
    trained: np.ndarray
    """How many of its ids are trained."""
    content: np.ndarray
    """Hash of its text."""
    begin: np.ndarray
    """Where its ids begin in the spool."""


class Spool:
    """Ids and masks of all records, in order, in files of `folder`."""

    def __init__(self, folder: Path, dtype: np.dtype, *, masked: bool = True) -> None:
        """Begin; without masks all ids of a record but its first are trained."""
        self._dtype = dtype
        names = ("records.ids", "records.mask") if masked else ("records.ids",)
        self._paths = [folder / name for name in names]
        self._files = [open(path, "wb") for path in self._paths]  # noqa: SIM115
        self._facts = array("Q")  # five numbers a record

    def add(self, file: int, number: int, content: int, record: Encoded) -> None:
        """Append a record."""
        self._files[0].write(record.ids.astype(self._dtype).data)
        for masks in self._files[1:]:
            masks.write(record.trained.view(np.uint8).data)
        self._facts.extend((file, number, len(record.ids), int(record.trained.sum()), content))

    def entries(self) -> Entries:
        """What was added; nothing can be added any more."""
        for file in self._files:
            file.close()
        facts = np.frombuffer(self._facts, np.uint64).reshape(-1, 5)
        length = facts[:, 2].astype(np.int64)
        origin, number, trained = (facts[:, at].astype(np.int64) for at in (0, 1, 3))
        return Entries(origin, number, length, trained, facts[:, 4], np.cumsum(length) - length)

    def read(self, entries: Entries, contexts: Groups, context: int, pad: int) -> "Rows":
        """Contexts as padded rows, and which of their ids are trained."""
        ids = np.full((contexts.num_contexts, context), pad, self._dtype)
        trained = np.zeros((contexts.num_contexts, context), bool)
        kinds = (self._dtype, np.dtype(np.uint8))
        stored = [np.memmap(p, kind, "r") for p, kind in zip(self._paths, kinds, strict=False)]
        row_of = np.repeat(np.arange(contexts.num_contexts), np.diff(contexts.first))
        row, at = -1, 0
        for number, index in enumerate(contexts.members.tolist()):
            if row != row_of[number]:
                row, at = int(row_of[number]), 0
            begin, length = int(entries.begin[index]), int(entries.length[index])
            source, place = slice(begin, begin + length), slice(at, at + length)
            ids[row, place] = stored[0][source]
            trained[row, place] = stored[1][source] if len(stored) > 1 else True
            trained[row, at] = False  # nothing of its record comes before it
            at += length
        return Rows(ids, trained)

    def __enter__(self) -> "Spool":
        return self

    def __exit__(self, *failure: object) -> None:
        for file, path in zip(self._files, self._paths, strict=True):
            file.close()
            path.unlink(missing_ok=True)


class Rows(NamedTuple):
    """Padded ids and masks, (rows, context) each."""

    ids: np.ndarray
    trained: np.ndarray
