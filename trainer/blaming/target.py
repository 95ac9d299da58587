"""What is to be explained: the loss on held-out text, of an answer, or of one context."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from trainer.blaming.states import token_losses
from trainer.contract.errors import RequestError
from trainer.models import load_tokenizer
from trainer.models.chat_prompts import as_in_store, prompt_encoder
from trainer.tokens.store import TokenStore
from trainer.training.data.batches import Batch, read_batch
from trainer.training.data.validation import held_out
from trainer.training.engine.loss import trained_places
from trainer.training.job import Job

BATCH_TOKENS = 2048  # at a time: their logits are held, 1 GB of 128,000 words
Direction = Literal["worse", "better"]


@dataclass(frozen=True, kw_only=True)
class Question:
    """What somebody asks; exactly one of the three kinds."""

    held_out: bool = False
    prompt: str | None = None
    answer: str | None = None
    context: int | None = None
    direction: Direction | Literal[""] = ""
    """Documents that made it worse (a higher loss) or better; '': better for an answer."""
    max_replays: int = 10
    max_hours: float = 0.0
    """0: no limit."""
    at_a_time: int = 0
    """Replays at the same time; 0: as many as have processors, or GPUs, of their own."""
    seed: int = 1

    @property
    def wanted(self) -> Direction:
        return self.direction or ("worse" if self.answer is None else "better")

    @property
    def name(self) -> str:
        """What the report's files are called."""
        if self.held_out:
            kind = "held-out"
        elif self.context is not None:
            kind = f"context-{self.context}"
        else:
            kind = f"answer-{self.digest[:8]}"
        return f"{kind}-{self.wanted}"

    @property
    def digest(self) -> str:
        """Of what is asked about, whatever may be spent on it."""
        asked = [self.held_out, self.prompt, self.answer, self.context]
        return hashlib.sha256(json.dumps(asked).encode()).hexdigest()

    def to_record(self) -> dict[str, Any]:
        return {**asdict(self), "direction": self.wanted}


@dataclass(frozen=True)
class Target:
    """The text whose loss is explained, and the held-out text that is measured beside it."""

    batches: list[Batch]
    held_out: list[Batch] = field(default_factory=list)
    documents: list[np.ndarray] = field(default_factory=list)
    """By batch of `held_out`: the document of each trained token, (N,); index in `numbers`."""
    numbers: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    """Which of the store's documents have held-out text, as `Texts.of_document` counts them."""
    is_held_out: bool = False


def target_of(job: Job, store: TokenStore, question: Question) -> Target:
    """The target.

    Raises:
        RequestError: There is no such context, no held-out text, or the answer has no token.
    """
    contexts = held_out(store)
    if question.held_out and not store.trained_tokens(contexts):
        raise RequestError(
            "--held-out needs held-out text, and the run's tokens have none (train_ratio is 1). "
            "Ask about an answer (--prompt, --answer) or a training context (--context)."
        )
    chosen = list(in_batches(store, contexts)) if store.trained_tokens(contexts) else []
    held = [read_batch(store, of_batch) for of_batch in chosen]
    documents, numbers = _documents(store, chosen, held)
    if question.held_out:
        own = held
    elif question.context is not None:
        own = [_context(store, question.context)]
    else:
        own = [_answer(job, store, question)]
    return Target(own, held, documents, numbers, is_held_out=question.held_out)


def in_batches(store: TokenStore, contexts: np.ndarray) -> Iterator[np.ndarray]:
    """The contexts, some at a time."""
    rows = max(1, BATCH_TOKENS // store.manifest.context)
    for start in range(0, len(contexts), rows):
        yield contexts[start : start + rows]


def _documents(
    store: TokenStore, chosen: list[np.ndarray], batches: list[Batch]
) -> tuple[list[np.ndarray], np.ndarray]:
    """Which document each trained token of some batches is of, and which documents these are."""
    keys = store.documents[["file", "number"]]
    _, document_of_part = np.unique(keys, return_inverse=True)
    numbers = [
        document_of_part[part_at(store, positions_of(store, contexts, trained_tokens_of(batch)))]
        for contexts, batch in zip(chosen, batches, strict=True)
    ]
    distinct = np.unique(np.concatenate(numbers)) if numbers else np.empty(0, np.int64)
    return [np.searchsorted(distinct, of_batch) for of_batch in numbers], distinct


def trained_tokens_of(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of each token of a batch whose loss counts, as `token_losses` has them."""
    places = trained_places(batch.lengths, batch.ids.shape[1], batch.trained).numpy() + 1
    return np.divmod(places, batch.ids.shape[1])


def positions_of(
    store: TokenStore, contexts: np.ndarray, tokens: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """Where in the stream tokens (row, column) of a batch of contexts stand."""
    rows, columns = tokens
    return store.begins[contexts].astype(np.int64)[rows] + columns


def part_at(store: TokenStore, positions: np.ndarray) -> np.ndarray:
    """The part of the stream (`store.documents`) that each position is in."""
    return np.searchsorted(store.documents["start"], positions, side="right") - 1


def _context(store: TokenStore, number: int) -> Batch:
    count = store.manifest.num_contexts
    if not 0 <= number < count or not store.trained_tokens(np.array([number])):
        raise RequestError(
            f"--context is no context with trained tokens (got {number}). The store has "
            f"{count:,}, from 0; `finetune tokens` shows them."
        )
    return read_batch(store, np.array([number]))


def _answer(job: Job, store: TokenStore, question: Question) -> Batch:
    """Prompt and answer as one row, of which the answer's tokens count."""
    tokenizer = load_tokenizer(job.tokenizer_path, job.config.trust_remote_code)
    encode = prompt_encoder(as_in_store(tokenizer, store.manifest), store.manifest)
    before = encode(question.prompt or "")
    after = tokenizer(question.answer or "", add_special_tokens=False)["input_ids"]
    ids = [*before, *after]
    most = store.manifest.context
    if not after or len(ids) < 2 or len(ids) > most:
        raise RequestError(
            f"--prompt and --answer have {len(before)} and {len(after)} tokens. The answer needs "
            f"one at least, both together two at least and {most} at most (the run's context)."
        )
    trained = torch.zeros((1, len(ids)), dtype=torch.bool)
    trained[0, max(1, len(before)) :] = True
    return Batch(torch.tensor([ids]), torch.tensor([len(ids)]), trained)


# --- losses ---------------------------------------------------------------------------------


def measured(target: Target, model: Any) -> dict[str, Any]:
    """The target's mean loss, and of each held-out document the sum and the tokens."""
    count = len(target.numbers)
    sums, tokens = np.zeros(count), np.zeros(count, np.int64)
    for losses, documents in zip(_losses(target.held_out, model), target.documents, strict=True):
        sums += np.bincount(documents, losses, count)
        tokens += np.bincount(documents, minlength=count)
    if target.is_held_out:
        mean = float(sums.sum() / tokens.sum())
    else:
        mean = float(np.concatenate(list(_losses(target.batches, model))).mean())
    return {"loss": mean, "sums": sums.tolist(), "tokens": tokens.tolist()}


def _losses(batches: list[Batch], model: Any) -> Iterator[np.ndarray]:
    with torch.no_grad():
        for batch in batches:
            yield token_losses(model, batch).double().cpu().numpy()
