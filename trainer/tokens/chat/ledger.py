"""Where every token of chats and completions went: per file, exactly.

For each file, and so in all, in tokens:

    encoded = in_contexts + sampled_out + dropped_tokens + cut_tokens
    in_contexts = trained_tokens + masked_tokens

`too_long` and `cut_before_answer` count records that are left out, the latter because a cut
would leave no token to train on; `cut` counts records that were cut.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.tokens.chat.spool import Entries
from trainer.tokens.chat.writing import RecordWriter

if TYPE_CHECKING:
    from trainer.tokens.chat.rendering import RecordWork


@dataclass
class RecordCounts:
    """Of one file."""

    documents: int = 0
    empty_documents: int = 0
    blank_lines: int = 0
    tokens: int = 0
    too_long: int = 0
    cut_before_answer: int = 0
    cut: int = 0
    dropped_tokens: int = 0
    cut_tokens: int = 0

    def dropped(self) -> dict[str, int]:
        """What is in no context, by reason; the names of plain text's ledger come first."""
        return {
            "empty_documents": self.empty_documents,
            "blank_lines": self.blank_lines,
            "boundaries": 0,
            "too_long": self.too_long,
            "cut_before_answer": self.cut_before_answer,
            "cut": self.cut,
            "dropped_tokens": self.dropped_tokens,
            "cut_tokens": self.cut_tokens,
        }


def ledger(
    work: "RecordWork", entries: Entries, writer: RecordWriter, held: np.ndarray
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """The manifest's table of files, and its sums.

    Args:
        held: Indexes of the records that are held out.
    """
    num_files = len(work.sources)

    def by_file(which: np.ndarray, values: np.ndarray) -> np.ndarray:
        sums = np.zeros(num_files, np.int64)
        np.add.at(sums, entries.file[which], values[which])
        return sums

    every = np.arange(len(entries.length))
    kept = np.concatenate([contexts.members for contexts in writer.contexts])
    spooled, used = by_file(every, entries.length), by_file(kept, entries.length)
    trained, contexts = by_file(kept, entries.trained), _contexts(entries, writer, num_files)
    held_out = by_file(held, entries.length)
    held_trained = by_file(writer.contexts[1].members, entries.trained)
    rows = []
    for index, source in enumerate(work.sources):
        counts = work.counts[index]
        dropped = {**counts.dropped(), "sampled_out": int(spooled[index] - used[index])}
        left_out = dropped["sampled_out"] + counts.dropped_tokens + counts.cut_tokens
        assert counts.tokens == used[index] + left_out, (source.path, counts)
        rows.append(
            {
                "path": source.path,
                "bytes": source.size,
                "sha256": work.digests[index],
                "shape": work.shapes[index],
                "documents": counts.documents,
                "tokens": counts.tokens,
                "held_out_tokens": int(held_out[index]),
                "contexts": int(contexts[index]),
                "in_contexts": int(used[index]),
                "trained_tokens": int(trained[index]),
                "masked_tokens": int(used[index] - trained[index]),
                "held_out_trained_tokens": int(held_trained[index]),
                "repeated": 0,
                "dropped": dropped,
            }
        )
    return rows, _totals(rows)


def _contexts(entries: Entries, writer: RecordWriter, num_files: int) -> np.ndarray:
    """How many contexts hold some of each file, shape (files,)."""
    sums = np.zeros(num_files, np.int64)
    for contexts in writer.contexts:
        number = np.repeat(np.arange(contexts.num_contexts), np.diff(contexts.first))
        pairs = np.unique(number * num_files + entries.file[contexts.members])
        sums += np.bincount(pairs % num_files, minlength=num_files)
    return sums


def _totals(rows: list[dict[str, Any]]) -> dict[str, int]:
    summed = (
        "documents held_out_tokens repeated in_contexts trained_tokens masked_tokens "
        "held_out_trained_tokens".split()
    )
    sums = {name: sum(row[name] for row in rows) for name in summed}
    dropped = {name: sum(row["dropped"][name] for row in rows) for name in rows[0]["dropped"]}
    return {**sums, "encoded": sum(row["tokens"] for row in rows), **dropped}
