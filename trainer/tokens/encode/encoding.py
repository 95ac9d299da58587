"""What is made, with which encoder, and how pieces are made with it."""

import contextlib
import hashlib
import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from trainer.contract.files import write_atomically
from trainer.contract.json_text import parse_json
from trainer.tokens.encode.crew import ALONE_BYTES, Crew
from trainer.tokens.encode.encoder import Proof
from trainer.tokens.encode.vocabulary import TokenIds, Vocabulary
from trainer.tokens.encode.worker import Recipe, answer
from trainer.tokens.store_request import StoreRequest
from trainer.tokens.text.parts import sample_places
from trainer.tokens.text.sources import Source

PIECES_FORMAT = 2
_PROOF_FORMAT = 5
_HARD = "hard text"
_MOST_REMEMBERED = 4096  # samples, of all corpora that a tokenizer read
_FEW_PLACES = 4  # so many are compared in the step's own process


@dataclass(frozen=True, kw_only=True)
class Work(StoreRequest):
    """What is made, and with which ids."""

    vocabulary: Vocabulary
    ids: TokenIds


def proven(work: Work, crew: Crew) -> Proof:
    """What may be trusted for this corpus; remembered by what was compared.

    Text that is hard on purpose is compared once for a tokenizer, each sample of a corpus once: a
    corpus that is a little changed has few samples that are new.
    """
    known = [work.vocabulary.digest, *map(_installed, ("tokenizers", "fastokens")), _PROOF_FORMAT]
    read_by = [work.config.sanitize, work.options["text_field"]]
    always, here = _memory(work, known), _memory(work, [*known, *read_by])
    hard = _remembered(always)
    if not hard:
        hard = {_HARD: _compared(work, crew, None)[0]}
        _remember(always, hard)
    digests = dict(zip((s.path for s in work.sources), work.digests, strict=True))
    drawn = sample_places(work.sources, work.digests)
    places = {f"{digests[source.path]}@{at}": (source, at) for source, at in drawn}
    compared = _remembered(here)
    if new := {name: place for name, place in places.items() if name not in compared}:
        compared |= dict(zip(new, _compared(work, crew, list(new.values())), strict=True))
        _remember(here, dict(list(compared.items())[-_MOST_REMEMBERED:]))
    proofs = [hard[_HARD], *(compared[name] for name in places)]
    return Proof(all(proof.fast for proof in proofs), all(proof.cuts for proof in proofs))


def _memory(work: Work, compared: list[Any]) -> Path:
    named = hashlib.sha256(json.dumps(compared).encode()).hexdigest()[:32]
    return work.cache / "proofs" / f"{named}.json"


def _remembered(path: Path) -> dict[str, Proof]:
    """Proofs by what was compared; what can't be read is compared again."""
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError, RecursionError):
        stored = parse_json(path.read_text(encoding="utf-8"))
        return {name: Proof(**proof) for name, proof in stored.items()}
    return {}


def _remember(path: Path, proofs: dict[str, Proof]) -> None:
    text = json.dumps({name: proof._asdict() for name, proof in proofs.items()})
    write_atomically(path, text)


def _compared(work: Work, crew: Crew, places: list[tuple[Source, int]] | None) -> list[Proof]:
    """The proof on the sample at each of `places`, or one on hard text."""
    task = {
        "prove": places,
        "tokenizer": str(work.vocabulary.path),
        "sanitize": work.config.sanitize,
        "text_field": work.config.text_field,
    }
    few = places is not None and len(places) <= _FEW_PLACES
    alone = few or sum(source.size for source in work.sources) < ALONE_BYTES
    found = answer(task, {}) if alone else crew.ask(task)
    return [Proof(*proof) for proof in found["proofs"]]


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
        before=work.vocabulary.before,
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
    if work.vocabulary.before:
        decides.append(work.vocabulary.before)
    named = hashlib.sha256(json.dumps(decides).encode()).hexdigest()[:16]
    return work.cache / "pieces" / named
