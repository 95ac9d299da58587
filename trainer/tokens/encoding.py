"""What is made, with which encoder, and how pieces are made with it."""

import contextlib
import hashlib
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trainer.config import TokenizeConfig
from trainer.outcome import write_atomically
from trainer.tokens.crew import Crew, num_workers
from trainer.tokens.encoder import Proof
from trainer.tokens.parts import sample_places
from trainer.tokens.sources import Source
from trainer.tokens.vocabulary import TokenIds, Vocabulary
from trainer.tokens.worker import Recipe, answer

PIECES_FORMAT = 2
ALONE_BYTES = 4 << 20
"""Less than this is encoded in this process: others would take longer to start."""


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

    def crew(self) -> Crew:
        """The processes that make it."""
        return Crew(self.tokenizer_path, num_workers(self.config.workers))


def proven(work: Work, crews: contextlib.ExitStack) -> tuple[Proof, Crew | None]:
    """What may be trusted for this corpus; remembered by what was compared.

    Returns:
        The proof, and the crew that was started for it, if one was.
    """
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
        return Proof(**json.loads(path.read_text(encoding="utf-8"))), None
    except (OSError, ValueError, TypeError):
        pass
    task = {
        "prove": places,
        "tokenizer": work.tokenizer_path,
        "sanitize": work.config.sanitize,
        "text_field": work.config.text_field,
    }
    if sum(source.size for source in work.sources) < ALONE_BYTES:
        proof, crew = Proof(**answer(task, {})), None
    else:
        crew = crews.enter_context(work.crew())
        proof = Proof(**crew.ask(task))
    write_atomically(path, json.dumps(proof._asdict()))
    return proof, crew


def encoder_name(proof: Proof) -> str:
    """The encoder that is used, with its version."""
    name = "fastokens" if proof.fast else "tokenizers"
    return f"{name} {_installed(name)}"


def _installed(package: str) -> str:
    try:
        return version(package)
    except ImportError:
        return ""


def recipe(work: Work, proof: Proof) -> Recipe:
    """How pieces are made."""
    return Recipe(
        tokenizer=work.tokenizer_path,
        sanitize=work.config.sanitize,
        eot=work.ids.eot,
        dtype=work.vocabulary.dtype.str,
        fast=proof.fast,
        cuts=proof.cuts,
    )


def pieces_folder(work: Work, proof: Proof) -> Path:
    """Where the pieces are kept: named by all that decides their content."""
    decides = [
        PIECES_FORMAT,
        work.vocabulary.digest,
        work.config.sanitize,
        work.ids.eot,
        encoder_name(proof),
        proof.cuts,
    ]
    named = hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]
    return work.cache / "pieces" / named
