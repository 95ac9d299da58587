"""What is made, with which encoder, and how pieces are made with it."""

import contextlib
import hashlib
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trainer.config import TokenizeConfig
from trainer.durable import write_atomically
from trainer.tokens.crew import ALONE_BYTES, Crew
from trainer.tokens.encoder import Proof
from trainer.tokens.parts import sample_places
from trainer.tokens.sources import Source
from trainer.tokens.vocabulary import TokenIds, Vocabulary
from trainer.tokens.worker import Recipe, answer

PIECES_FORMAT = 2
_PROOF_FORMAT = 4


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


def proven(work: Work, crew: Crew) -> Proof:
    """What may be trusted for this corpus; remembered by what was compared.

    Text that is hard on purpose is compared once for a tokenizer, samples for each corpus.
    """
    known = [work.vocabulary.digest, *map(_installed, ("tokenizers", "fastokens")), _PROOF_FORMAT]
    places = sample_places(work.sources, work.digests)
    digests = dict(zip((s.path for s in work.sources), work.digests, strict=True))
    sampled = [(digests[source.path], offset) for source, offset in places]
    read_by = [work.config.sanitize, work.options["text_field"]]
    always = _proof(work, crew, known, None)
    here = _proof(work, crew, [*known, sampled, *read_by], places)
    return Proof(always.fast and here.fast, always.cuts and here.cuts)


def _proof(
    work: Work, crew: Crew, compared: list[Any], places: list[tuple[Source, int]] | None
) -> Proof:
    """The proof on samples at `places`, or on hard text; remembered as `compared`."""
    named = hashlib.sha256(json.dumps(compared).encode()).hexdigest()[:32]
    path = work.cache / "proofs" / f"{named}.json"
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Proof(**json.loads(path.read_text(encoding="utf-8")))
    task = {
        "prove": places,
        "tokenizer": str(work.vocabulary.path),
        "sanitize": work.config.sanitize,
        "text_field": work.config.text_field,
    }
    alone = sum(source.size for source in work.sources) < ALONE_BYTES
    proof = Proof(**(answer(task, {}) if alone else crew.ask(task)))
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


def recipe(work: Work, proof: Proof) -> Recipe:
    """How pieces are made."""
    return Recipe(
        tokenizer=str(work.vocabulary.path),
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
