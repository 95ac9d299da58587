"""Continuous batching: one thread that gives every sequence under way its next token.

    submit -> waiting -> reading the prompt (in pieces) -> answering -> finished

Sequences join and leave between two tokens. Long prompts are read in pieces, one
between every two tokens of the others, so nobody's answer stands still for long.
"""

import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trainer.serving.contrastive import ContrastiveSearch
from trainer.serving.kv_cache import BatchCache
from trainer.serving.sequences import Event, Job, Sequence, SequenceRequest, Sink

PROMPT_PIECE_TOKENS = 512  # read between two tokens of the others, padding included


class QueueFullError(Exception):
    """As many requests wait as may wait."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the engine takes on."""

    max_total_tokens: int  # prompt and answer of one sequence
    max_batch: int = 32  # sequences answered at a time
    max_queue: int = 256  # sequences that wait beyond those
    max_cached_tokens: int = 2**40  # rows x longest row, of all sequences under way
    request_seconds: float = 600.0


class Engine:
    """The model's thread. `submit` from any thread; the sink is called from this one."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        limits: Limits,
        end_ids: frozenset[int],
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.limits = limits
        self.end_ids = end_ids
        self.failure: str | None = None
        self.on_failure: Callable[[], None] = lambda: None
        self.num_answered = 0  # tokens
        self.num_passes = 0
        self._waiting: deque[Sequence] = deque()
        self._reading: list[Sequence] = []
        self._read_columns = 0
        self._incoming = BatchCache()
        self._answering: list[Sequence] = []
        self._searching: list[ContrastiveSearch] = []
        self._cache = BatchCache()
        self._events: dict[Job, list[Event]] = {}
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    # --- from other threads -------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    def submit(self, requests: list[SequenceRequest], sink: Sink) -> Job:
        """Queue `requests`, which finish independently.

        Raises:
            QueueFullError: So many wait already.
        """
        job = Job(sink, time.monotonic() + self.limits.request_seconds)
        sequences = [
            Sequence(index, request, job, self.tokenizer, self.end_ids)
            for index, request in enumerate(requests)
        ]
        with self._changed:
            if self._closing or self.failure:
                raise QueueFullError(self.failure or "the server is stopping")
            if len(self._waiting) + len(requests) > self.limits.max_queue + self._free_rows():
                raise QueueFullError(f"{len(self._waiting)} requests wait already")
            self._waiting.extend(sequences)
            self._changed.notify()
        return job

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def under_way(self) -> int:
        return len(self._reading) + len(self._answering) + len(self._searching)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and self.failure is None

    def close(self) -> None:
        """Finish what is under way, then end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    # --- the thread ---------------------------------------------------------------------

    def _free_rows(self) -> int:
        return max(0, self.limits.max_batch - self.under_way)

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                while self._await_work():
                    self._drop_given_up()
                    self._admit()
                    self._read_prompts()
                    self._answer()
                    self._search()
                    self._deliver()
        finally:  # what broke it is printed by the thread itself
            error = sys.exc_info()[1]
            if error:
                self._fail(f"{type(error).__name__}: {error}")

    def _await_work(self) -> bool:
        """Wait until there is something to do; False when closing with nothing left."""
        with self._changed:
            while not (self._waiting or self.under_way):
                if self._closing:
                    return False
                self._changed.wait()
        return True

    def _fail(self, reason: str) -> None:
        with self._changed:
            self.failure = reason
            searching = [search.sequence for search in self._searching]
            left = [*self._waiting, *self._reading, *self._answering, *searching]
            self._waiting.clear()
        for sequence in left:
            self._tell(sequence, sequence.finished("error"))
        self._deliver()
        self.on_failure()

    def _tell(self, sequence: Sequence, event: Event) -> None:
        self.num_answered += event.token_id is not None
        self._events.setdefault(sequence.job, []).append(event)

    def _deliver(self) -> None:
        events, self._events = self._events, {}
        for job, its_events in events.items():
            job.sink(its_events)

    def _drop_given_up(self) -> None:
        """End the sequences nobody wants any more; prompts being read are dropped after that."""
        for row in reversed(range(len(self._answering))):
            reason = self._answering[row].given_up
            if reason:
                self._tell(self._answering[row], self._answering[row].finished(reason))
                self._leave(row)
        with self._changed:
            for sequence in [s for s in self._waiting if s.given_up]:
                self._waiting.remove(sequence)
                self._tell(sequence, sequence.finished(sequence.given_up or "cancelled"))

    def _leave(self, row: int) -> None:
        self._cache.leave(row)
        self._answering[row] = self._answering[-1]
        self._answering.pop()

    def _admit(self) -> None:
        """Begin to read the prompts that come next, several short ones together."""
        if self._reading:
            return
        longest = 0
        with self._changed:
            while self._waiting and self._free_rows():
                request = self._waiting[0].request
                if not self._fits(request):
                    break
                if request.sampling.penalty_alpha:
                    self._searching.append(ContrastiveSearch(self.model, self._waiting.popleft()))
                    continue
                longest = max(longest, len(request.prompt_ids))
                if self._reading and longest * (len(self._reading) + 1) > PROMPT_PIECE_TOKENS:
                    break
                self._reading.append(self._waiting.popleft())
        self._incoming = BatchCache(prompts=len(self._reading))
        self._read_columns = 0

    def _fits(self, request: SequenceRequest) -> bool:
        """Whether there is memory for one more, if all answers get as long as they may."""
        searching = [search.sequence for search in self._searching]
        others = [s.request for s in (*self._reading, *self._answering, *searching)]
        together = [*others, request]
        cached = sum(r.num_rows for r in together) * max(r.most_tokens for r in together)
        return not others or cached <= self.limits.max_cached_tokens

    def _read_prompts(self) -> None:
        """Read the next piece of the prompts; those read to the end start to answer."""
        if not self._reading:
            return
        lengths = [len(s.request.prompt_ids) for s in self._reading]
        total = max(lengths)
        begin = self._read_columns
        columns = min(max(1, PROMPT_PIECE_TOKENS // len(lengths)), total - begin)
        lengths_after = [max(0, length - (total - begin - columns)) for length in lengths]
        firsts = [length - total + begin for length in lengths]  # negative in the padding
        ids = torch.tensor(
            [
                _padded(sequence.request.prompt_ids, first, columns)
                for sequence, first in zip(self._reading, firsts, strict=True)
            ]
        )
        wanted = any(s.request.prompt_logprobs for s in self._reading)
        logits = self._forward(self._incoming, ids, lengths_after, 0 if wanted else 1)
        if wanted:
            for sequence, row, first in zip(self._reading, logits, firsts, strict=True):
                if sequence.request.prompt_logprobs:
                    sequence.score_prompt(row, first)
        self._read_columns += columns
        if self._read_columns == total:
            self._take_over(logits[:, -1])

    def _take_over(self, logits: torch.Tensor) -> None:
        """Let the prompts that were read go on to their first token; logits (rows, vocabulary)."""
        read, self._reading = self._reading, []
        going_on = []
        for row, sequence in enumerate(read):
            reason = sequence.given_up
            if reason is None and sequence.request.prompt_logprobs:
                self._tell(sequence, sequence.prompt_event())
            if reason is None and sequence.request.max_new_tokens == 0:
                reason = "length"
            if reason:
                self._tell(sequence, sequence.finished(reason))
            elif not self._next_token(sequence, logits[row]):
                going_on.append(row)
        if len(going_on) == len(read) and not self._answering:
            self._cache = self._incoming
        elif going_on:
            self._cache.join(self._incoming, going_on)
        self._answering += [read[row] for row in going_on]
        self._incoming = BatchCache()

    def _answer(self) -> None:
        """Give every answering sequence its next token."""
        if not self._answering:
            return
        ids = torch.tensor([[s.answer_ids[-1]] for s in self._answering])
        lengths_after = [length + 1 for length in self._cache.lengths]
        logits = self._forward(self._cache, ids, lengths_after, 1)[:, -1]
        self.num_passes += 1
        finished = [
            row
            for row, sequence in enumerate(self._answering)
            if self._next_token(sequence, logits[row])
        ]
        for row in reversed(finished):
            self._leave(row)

    def _search(self) -> None:
        """Give every sequence under contrastive search its next token."""
        for search in list(self._searching):
            sequence = search.sequence
            reason = sequence.given_up
            event = sequence.finished(reason) if reason else search.step()
            self._tell(sequence, event)
            if event.finish:
                self._searching.remove(search)

    def _forward(
        self, cache: BatchCache, ids: torch.Tensor, lengths_after: list[int], keep: int
    ) -> torch.Tensor:
        """Logits, shape (rows, T or `keep`, vocabulary); `keep` 0: of every column."""
        columns = ids.shape[1]
        mask, positions = cache.inputs_for(lengths_after, columns)
        device = self.model.device
        logits = self.model(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            position_ids=positions.to(device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=keep,
        ).logits
        cache.advance(lengths_after, columns)
        return logits.float().cpu()

    def _next_token(self, sequence: Sequence, logits: torch.Tensor) -> bool:
        """Choose and tell the next token; whether the answer is finished."""
        event = sequence.add(sequence.choose(logits), logits)
        self._tell(sequence, event)
        return event.finish is not None


def _padded(ids: tuple[int, ...], first: int, columns: int) -> list[int]:
    """`columns` ids from the one numbered `first` on; zeros before the first of all."""
    padding = min(columns, max(0, -first))
    return [0] * padding + list(ids[first + padding : first + columns])
