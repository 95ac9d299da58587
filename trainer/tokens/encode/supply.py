"""The pieces of every file, in order, made while they are asked for.

Which ones are missing is found out as the crew needs work, so that nothing waits for the
whole corpus to be looked at, and the first pieces are packed while others are made.
"""

import itertools
from collections.abc import Iterator

from trainer.tokens.encode.crew import ALONE_BYTES, Batch, Crew
from trainer.tokens.encode.encoder import Proof
from trainer.tokens.encode.encoding import Work, pieces_folder, recipe
from trainer.tokens.encode.pieces import LoadedPiece, is_whole, load_parts, piece_path
from trainer.tokens.encode.progress import Progress
from trainer.tokens.encode.worker import PieceMaker
from trainer.tokens.text.cuts import PIECE_BYTES
from trainer.tokens.text.documents import Part
from trainer.tokens.text.parts import plan_parts

_BATCH_FILES = 64


class Supply:
    """Makes what is missing, and hands out all of it."""

    def __init__(self, work: Work, proof: Proof, crew: Crew) -> None:
        self.work, self.recipe = work, recipe(work, proof)
        self.progress = Progress("tokenize", sum(source.size for source in work.sources))
        self._folder = pieces_folder(work, proof)
        self._paths: dict[int, list[str]] = {}
        self._seen = (0, 0)  # the first file, and its first piece, that was not looked for
        self._missing: dict[str, int] = {}  # with their share of the file's bytes
        self._crew = crew
        self._begin()

    def _begin(self) -> None:
        """Make a little here; for more begin with the crew."""
        batches = self._batches()
        begun: list[Batch] = []
        size = 0
        for batch in batches:
            begun.append(batch)
            size += sum(part.stop - part.start for part, *_ in batch)
            if size > ALONE_BYTES:
                break
        else:
            maker = PieceMaker(self.recipe) if begun else None
            for batch in begun:
                assert maker
                ids = sum(maker.make(*wanted) for wanted in batch)
                self._made(batch, ids)
            return
        self._crew.begin(self.recipe, itertools.chain(begun, batches))

    def pieces(self, index: int) -> Iterator[LoadedPiece]:
        """The pieces of file number `index`; the first time files are asked for in order."""
        at = 0
        while True:
            self._collect(wait=False)
            while not self._is_made(index, at):
                self._collect(wait=True)
            if at == len(self._paths[index]):
                return
            yield from load_parts(self._paths[index][at])
            at += 1

    def _is_made(self, index: int, at: int) -> bool:
        if self._seen <= (index, at):
            return False
        paths = self._paths[index]
        return at == len(paths) or paths[at] not in self._missing

    def _collect(self, wait: bool) -> None:
        for batch, ids in self._crew.done(wait):
            self._made(batch, ids)

    def _made(self, batch: Batch, ids: int) -> None:
        self.progress.add(sum(self._missing.pop(path) for *_, path in batch), ids)

    def _batches(self) -> Iterator[Batch]:
        """Missing parts in groups worth a message to a worker."""
        batch: Batch = []
        size = 0
        for part, stamp, path in self._missing_parts():
            batch.append((part, stamp, path))
            size += part.stop - part.start
            if size >= PIECE_BYTES or len(batch) == _BATCH_FILES:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    def _missing_parts(self) -> Iterator[tuple[Part, str, str]]:
        """The parts that have no sound piece; see crew.Batch."""
        config = self.work.config
        for index, source in enumerate(self.work.sources):
            digest = self.work.digests[index]
            parts = list(plan_parts(source, digest, config.text_field, self.recipe.cuts))
            paths = self._paths[index] = [piece_path(self._folder, part) for part in parts]
            for at, (part, path) in enumerate(zip(parts, paths, strict=True)):
                last = at + 1 == len(parts)
                size = source.size * (part.stop - part.start) // max(1, part.whole)
                # A copy of a file that is being made needs no second piece.
                wanted = path not in self._missing and (config.retokenize or not is_whole(path))
                if wanted:
                    self._missing[path] = size
                else:
                    self.progress.skip(size)
                self._seen = (index + 1, 0) if last else (index, at + 1)
                if wanted:
                    yield part, source.stamp, path
