"""One sequence that the engine answers: what is asked, how it continues, what is told of it."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from transformers import PreTrainedTokenizerBase

from trainer.serving.engine.adapters import Adapter
from trainer.serving.engine.answer_text import AnswerText
from trainer.serving.engine.sampling import Sampling, choose_token

FinishReason = Literal["stop", "length", "cancelled", "timeout", "error"]


@dataclass(frozen=True, kw_only=True)
class SequenceRequest:
    """One answer that is wanted."""

    prompt_ids: tuple[int, ...]
    max_new_tokens: int
    min_new_tokens: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    top_logprobs: int | None = None  # None: no log-probabilities
    prompt_logprobs: bool = False

    @property
    def num_rows(self) -> int:
        """Rows of keys and values it takes: one for each candidate of contrastive search."""
        return self.sampling.top_k if self.sampling.penalty_alpha else 1

    @property
    def most_tokens(self) -> int:
        return len(self.prompt_ids) + self.max_new_tokens


@dataclass(frozen=True, kw_only=True)
class TokenLogprob:
    """Log-probability of one token under the model, and of the likeliest instead of it."""

    token_id: int
    logprob: float | None  # None: the first token of a prompt has nothing before it
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Event:
    """What happened to one sequence: a token, the prompt's log-probabilities, the end."""

    index: int  # which sequence of the submitted ones
    text: str = ""
    token_id: int | None = None
    token: TokenLogprob | None = None
    prompt: tuple[TokenLogprob, ...] = ()
    finish: FinishReason | None = None


Sink = Callable[[list[Event]], None]


class Job:
    """Sequences submitted together; `cancel` gives up those not finished."""

    def __init__(self, sink: Sink, deadline: float) -> None:
        self.sink = sink
        self.deadline = deadline
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Sequence:
    """One sequence running."""

    def __init__(
        self,
        index: int,
        request: SequenceRequest,
        job: Job,
        tokenizer: PreTrainedTokenizerBase,
        end_ids: frozenset[int],
        adapter: Adapter | None = None,
    ) -> None:
        self.adapter = adapter
        self.index = index
        self.request = request
        self.job = job
        self.answer_ids: list[int] = []
        self.failed = False
        self._prompt_logprobs: list[TokenLogprob] = []
        self._end_ids = end_ids
        self._rng = random.Random(request.sampling.seed)
        self._text = AnswerText(tokenizer, request.prompt_ids, request.stop, request.include_stop)

    @property
    def given_up(self) -> FinishReason | None:
        """Why no more is wanted of it, if so."""
        if self.failed:
            return "error"
        if self.job.cancelled:
            return "cancelled"
        return "timeout" if time.monotonic() > self.job.deadline else None

    @property
    def forbidden_ids(self) -> tuple[int, ...]:
        """End-of-text, while the answer is shorter than asked for."""
        too_short = len(self.answer_ids) < self.request.min_new_tokens
        return tuple(self._end_ids) if too_short else ()

    def finished(self, reason: FinishReason) -> Event:
        return Event(index=self.index, finish=reason)

    def choose(self, logits: torch.Tensor) -> int:
        """The next token, from the model's logits, shape (vocabulary,)."""
        request, forbidden = self.request, self.forbidden_ids
        if request.sampling.is_plain_greedy and not forbidden:
            return int(logits.argmax())
        return choose_token(
            logits, request.sampling, request.prompt_ids, self.answer_ids, forbidden, self._rng
        )

    def add(self, token_id: int, logits: torch.Tensor) -> Event:
        """Take the chosen token; `finish` of the event says whether it was the last.

        Args:
            token_id: The token.
            logits: What it was chosen from, shape (vocabulary,).
        """
        self.answer_ids.append(token_id)
        text, finish = self._text_and_finish(token_id)
        token, top = None, self.request.top_logprobs
        if top is not None:
            token = _token_logprob(logits.log_softmax(-1), token_id, top)
        return Event(index=self.index, text=text, token_id=token_id, token=token, finish=finish)

    def _text_and_finish(self, token_id: int) -> tuple[str, FinishReason | None]:
        if token_id in self._end_ids:
            return self._text.finish(), "stop"
        text = self._text.push(token_id)
        if self._text.stopped:
            return text, "stop"
        if len(self.answer_ids) == self.request.max_new_tokens:
            return text + self._text.finish(), "length"
        return text, None

    def score_prompt(self, logits: torch.Tensor, first: int) -> None:
        """Note the log-probabilities that one piece of the prompt tells.

        Args:
            logits: Of the piece's columns, shape (T, vocabulary).
            first: Which token of the prompt the first column holds; negative in the padding.
        """
        ids, top = self.request.prompt_ids, self.request.top_logprobs or 0
        if not self._prompt_logprobs:
            self._prompt_logprobs.append(TokenLogprob(token_id=ids[0], logprob=None))
        for column in range(max(0, -first), min(len(logits), len(ids) - 1 - first)):
            scores = logits[column].log_softmax(-1)
            self._prompt_logprobs.append(_token_logprob(scores, ids[first + column + 1], top))

    def prompt_event(self) -> Event:
        return Event(index=self.index, prompt=tuple(self._prompt_logprobs))


def _token_logprob(scores: torch.Tensor, token_id: int, top: int) -> TokenLogprob:
    likeliest: tuple[tuple[int, float], ...] = ()
    if top:
        values, ids = scores.topk(min(top, len(scores)))
        likeliest = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return TokenLogprob(token_id=token_id, logprob=float(scores[token_id]), top=likeliest)
