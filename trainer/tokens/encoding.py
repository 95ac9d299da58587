"""Encode what is not cached: prove an encoder, then make the missing pieces."""

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trainer.config import TokenizeConfig
from trainer.outcome import write_atomically
from trainer.tokens.build import SourcePieces
from trainer.tokens.crew import Batch, Crew, num_workers
from trainer.tokens.cuts import PIECE_BYTES
from trainer.tokens.documents import Part
from trainer.tokens.encoder import Proof
from trainer.tokens.parts import plan_parts, sample_places
from trainer.tokens.pieces import Piece, piece_path
from trainer.tokens.progress import Progress
from trainer.tokens.sources import Source
from trainer.tokens.vocabulary import TokenIds, Vocabulary
from trainer.tokens.worker import PieceMaker, Recipe, answer

PIECES_FORMAT = 1
_ALONE_BYTES = 4 << 20
"""Less than this is encoded in this process: others would take longer to start."""
_BATCH_FILES = 64


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is made, and from what."""

    config: TokenizeConfig
    key: str
    options: dict[str, Any]
    sources: list[Source]
    digests: list[str]
    vocabulary: Vocabulary
    ids: TokenIds
    cache: Path

    @property
    def tokenizer_path(self) -> str:
        return str(self.cache / "tokenizers" / f"{self.vocabulary.digest}.json")


# --- the encoder ------------------------------------------------------------------------


def proven(work: Work) -> Proof:
    """What may be trusted for this corpus; remembered by what was compared."""
    places = sample_places(work.sources, work.digests)
    digests = dict(zip((s.path for s in work.sources), work.digests, strict=True))
    compared = [
        [work.vocabulary.digest, work.config.sanitize, work.options["text_field"]],
        [(digests[source.path], offset) for source, offset in places],
        [_installed("tokenizers"), _installed("fastokens"), PIECES_FORMAT],
    ]
    named = hashlib.sha256(json.dumps(compared).encode()).hexdigest()[:32]
    path = work.cache / "proofs" / f"{named}.json"
    try:
        return Proof(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        pass
    task = {
        "prove": places,
        "tokenizer": work.tokenizer_path,
        "sanitize": work.config.sanitize,
        "text_field": work.config.text_field,
    }
    if sum(source.size for source in work.sources) < _ALONE_BYTES:
        proof = Proof(**answer(task, {}))
    else:  # both encoders are loaded: more memory than this process should keep
        with Crew(1) as crew:
            proof = Proof(**crew.ask(task))
    write_atomically(path, json.dumps(proof._asdict()))
    return proof


def encoder_name(proof: Proof) -> str:
    """The encoder that is used, with its version."""
    name = "fastokens" if proof.fast else "tokenizers"
    return f"{name} {_installed(name)}"


def _installed(package: str) -> str:
    try:
        return version(package)
    except ImportError:
        return ""


# --- encoding ---------------------------------------------------------------------------


def encode(work: Work, proof: Proof) -> list[SourcePieces]:
    """The pieces of every source: those that are cached, and the others made."""
    recipe = _recipe(work, proof)
    pieces = [SourcePieces(index) for index in range(len(work.sources))]
    progress = Progress("tokenize", sum(source.size for source in work.sources))
    batches = _batches(_missing(work, recipe, pieces, progress))
    begun: list[Batch] = []
    for batch in batches:
        begun.append(batch)
        if sum(part.stop - part.start for some in begun for part, _ in some) > _ALONE_BYTES:
            break
    else:
        maker = PieceMaker(recipe) if begun else None
        for batch in begun:
            for part, stamp in batch:
                assert maker
                progress.add(_stored_bytes(part), maker.make(part, stamp))
        progress.end()
        return pieces
    with Crew(num_workers(work.config.workers)) as crew:
        for batch, ids in crew.make(recipe, itertools.chain(begun, batches)):
            progress.add(sum(_stored_bytes(part) for part, _ in batch), ids)
    progress.end()
    return pieces


def _recipe(work: Work, proof: Proof) -> Recipe:
    decides = [
        PIECES_FORMAT,
        work.vocabulary.digest,
        work.config.sanitize,
        work.ids.eot,
        encoder_name(proof),
        proof.cuts,
    ]
    named = hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]
    return Recipe(
        tokenizer=work.tokenizer_path,
        sanitize=work.config.sanitize,
        eot=work.ids.eot,
        dtype=work.vocabulary.dtype.str,
        fast=proof.fast,
        cuts=proof.cuts,
        folder=str(work.cache / "pieces" / named),
    )


def _missing(
    work: Work, recipe: Recipe, pieces: list[SourcePieces], progress: Progress
) -> Iterator[tuple[Part, str]]:
    """The parts that have no sound piece; fills `pieces` with the paths of all."""
    folder = Path(recipe.folder)
    for index, source in enumerate(work.sources):
        parts = plan_parts(source, work.digests[index], work.config.text_field, recipe.cuts)
        for part in parts:
            path = piece_path(folder, part)
            pieces[index].paths.append(path)
            piece = None if work.config.retokenize else Piece.open(path)
            if piece is None or not piece.sound():
                yield part, source.stamp
            else:
                progress.skip(_stored_bytes(part))


def _stored_bytes(part: Part) -> int:
    return part.stop - part.start if part.kind != "parquet" else 0


def _batches(parts: Iterator[tuple[Part, str]]) -> Iterator[Batch]:
    """Parts in groups worth a message to a worker."""
    batch: Batch = []
    size = 0
    for part, stamp in parts:
        batch.append((part, stamp))
        size += part.stop - part.start
        if size >= PIECE_BYTES or len(batch) == _BATCH_FILES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
