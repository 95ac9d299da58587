"""Where every token went: per file, exactly.

For each file, and so in all:

    encoded + repeated = in_contexts + boundaries + sampled_out

`boundaries` are boundary tokens right after a context's end, which are in neither of
two contexts; `sampled_out` are ids of contexts that `sampling` left out; what two
contexts share is `repeated`.
"""

import numpy as np

COLUMNS = ("encoded", "repeated", "in_contexts", "boundaries", "sampled_out", "contexts")


class Tally:
    """Counts the tokens of one stream by file."""

    def __init__(self, num_files: int) -> None:
        self.counts = {name: np.zeros(num_files, np.int64) for name in COLUMNS}
        self._starts: list[int] = []  # of each file that has tokens in the stream, ascending
        self._files: list[int] = []

    def begin_file(self, file: int, position: int) -> None:
        """Say that the stream's ids from `position` on are of `file`."""
        if self._files and self._files[-1] == file:
            return  # it continues: a context over the seam is one
        if self._starts and self._starts[-1] == position:
            self._files[-1] = file  # the file before has none
        else:
            self._starts.append(position)
            self._files.append(file)

    def add_encoded(self, file: int, count: int) -> None:
        """Count ids of `file` in the stream."""
        self.counts["encoded"][file] += count

    def add_contexts(
        self, begins: np.ndarray, ends: np.ndarray, nexts: np.ndarray, kept: np.ndarray
    ) -> None:
        """Count contexts, given as positions in the stream; `kept` by sampling or not."""
        starts = np.array(self._starts, np.int64)
        self._spans(starts, "in_contexts", begins[kept], ends[kept], count="contexts")
        self._spans(starts, "sampled_out", begins[~kept], ends[~kept])
        again = nexts < ends
        self._spans(starts, "repeated", nexts[again], ends[again])
        skipped = nexts > ends
        self._spans(starts, "boundaries", ends[skipped], nexts[skipped])
        # What is before the last context will not be asked for again.
        keep = max(0, int(np.searchsorted(starts, begins[-1], side="right")) - 1)
        del self._starts[:keep], self._files[:keep]

    def _spans(
        self, starts: np.ndarray, name: str, begins: np.ndarray, ends: np.ndarray, count: str = ""
    ) -> None:
        if not len(begins):
            return
        files = np.array(self._files, np.int64)
        first = np.searchsorted(starts, begins, side="right") - 1
        last = np.searchsorted(starts, ends - 1, side="right") - 1
        one = first == last
        np.add.at(self.counts[name], files[first[one]], (ends - begins)[one])
        if count:
            np.add.at(self.counts[count], files[first[one]], 1)
        for index in np.flatnonzero(~one):
            inner = np.arange(first[index], last[index] + 1)
            edges = np.append(starts[inner], ends[index])
            edges[0] = begins[index]
            np.add.at(self.counts[name], files[inner], np.diff(edges))
            if count:
                np.add.at(self.counts[count], files[inner], 1)


def adds_up(counts: dict[str, int]) -> bool:
    """Whether the ledger's sum is right."""
    used = counts["in_contexts"] + counts["boundaries"] + counts["sampled_out"]
    return counts["encoded"] + counts["repeated"] == used
