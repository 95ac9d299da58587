"""Write records as contexts of a store: one or several in each, padded, with their mask."""

from pathlib import Path

import numpy as np

from trainer.tokens.chat.spool import Entries, Spool
from trainer.tokens.pack.build import HashedFile
from trainer.tokens.packed.best_fit import Groups
from trainer.tokens.store import DOCUMENT

_IDS_AT_ONCE = 1 << 21


class RecordWriter:
    """Writes the records of one stream after another."""

    def __init__(
        self, folder: Path, dtype: np.dtype, context: int, pad: int, *, masked: bool
    ) -> None:
        self.dtype, self.context, self.pad = dtype, context, pad
        names = ("tokens", "lengths", "begins", "documents", *(["mask"] if masked else []))
        self.files = {name: HashedFile(folder / f"{name}.bin") for name in names}
        self.num_contexts = self.num_tokens = 0
        self.contexts: list[Groups] = []
        """Records by context, of each stream."""
        self._position = 0  # of the next id in the stream of all

    def write(self, spool: Spool, entries: Entries, order: np.ndarray, contexts: Groups) -> None:
        """Append a stream.

        Args:
            order: Indexes of its records, in the order of the stream: those of a context follow
                each other.
            contexts: Those that are in contexts.
        """
        begins = np.zeros(len(entries.length), np.int64)
        lengths = entries.length[order]
        begins[order] = self._position + np.cumsum(lengths) - lengths
        records = np.empty(len(order), DOCUMENT)
        records["start"], records["file"] = begins[order], entries.file[order]
        records["number"] = entries.number[order]
        self.files["documents"].write(records)
        self._position += int(lengths.sum())
        step = max(1, _IDS_AT_ONCE // self.context)
        for at in range(0, contexts.num_contexts, step):
            some = contexts.in_order(np.arange(at, min(at + step, contexts.num_contexts)))
            self._write_rows(spool, entries, some)
        lengths = contexts.sums(entries.length)
        self.files["lengths"].write(lengths.astype("<u4"))
        first = contexts.members[contexts.first[:-1]]
        self.files["begins"].write(begins[first].astype("<u8"))
        self.num_contexts += contexts.num_contexts
        self.num_tokens += int(lengths.sum())
        self.contexts.append(contexts)

    def _write_rows(self, spool: Spool, entries: Entries, contexts: Groups) -> None:
        rows = spool.read(entries, contexts, self.context, self.pad)
        self.files["tokens"].write(rows.ids)
        if "mask" in self.files:
            self.files["mask"].write(np.packbits(rows.trained, axis=1, bitorder="little"))

    def close(self) -> dict[str, dict[str, object]]:
        """Sync all files; returns the manifest's digests."""
        return {f"{name}.bin": file.close() for name, file in self.files.items()}
