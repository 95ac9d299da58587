"""Continuous batching: one thread that gives every running sequence its next token.

    submit -> waiting -> reading the prompt (in pieces) -> answering -> finished
                      -> answered alone --------------------------> finished

Sequences join and leave between two tokens. Long prompts are read in pieces, one
between every two tokens of the others, so no answer waits long for another's prompt.
What cannot share a batch is answered alone; `how_to_serve` finds out what that is.
"""

import contextlib
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trainer.serving.alone import AloneAnswer
from trainer.serving.engine.adapters import AdapterRows
from trainer.serving.engine.contrastive import ContrastiveSearch
from trainer.serving.engine.kv_cache import BatchCache
from trainer.serving.engine.sequences import Event, Job, Sequence, SequenceRequest, Sink
from trainer.serving.how_to_serve import HowToServe, how_to_serve
from trainer.serving.model_calls import ModelCall

PROMPT_PIECE_TOKENS = 512  # read between two tokens of the others, padding included


class QueueFullError(Exception):
    """As many requests wait as may wait."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the engine takes on."""

    max_total_tokens: int  # prompt and answer of one sequence
    max_batch: int = 32  # sequences answered at a time
    max_queue: int = 256  # sequences that wait beyond those
    max_cached_tokens: int = 2**40  # rows x longest row, of all sequences running
    request_seconds: float = 600.0


class Engine:
    """The model's thread. `submit` from any thread; the sink is called from this one."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        limits: Limits,
        end_ids: frozenset[int],
        how: HowToServe | None = None,
    ) -> None:
        """Serve `model` the way that `how` says; None: find out now.

        Raises:
            ValueError: This engine cannot serve the model.
        """
        self.model = model.eval()
        self.how = how or how_to_serve(model)
        if self.how.way == "vllm_only":
            raise ValueError(f"the engine builtin can't serve this model ({self.how.reasons[0]})")
        self.tokenizer = tokenizer
        self.limits = limits
        self.end_ids = end_ids
        self.failure: str | None = None
        self.on_failure: Callable[[], None] = lambda: None
        self.adapters: AdapterRows | None = None  # set before `start`; None: the model alone
        self.num_answered = 0  # tokens
        self.num_passes = 0
        self._waiting: deque[Sequence] = deque()
        self._unfinished: set[Sequence] = set()  # of all lists below; each gets an end
        self._reading: list[Sequence] = []
        self._read_columns = 0
        self._call = ModelCall(model)
        self._incoming = self._new_cache()
        self._answering: list[Sequence] = []
        self._alone: list[AloneAnswer | ContrastiveSearch] = []
        self._cache = self._new_cache()
        self._events: dict[Job, list[Event]] = {}
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    # --- from other threads -------------------------------------------------------------

    def start(self) -> None:
        self._thread.start()

    def submit(self, requests: list[SequenceRequest], sink: Sink, adapter: str = "") -> Job:
        """Queue `requests`, which finish independently.

        Args:
            requests: What is asked.
            sink: Told what happens.
            adapter: Name of the adapter that answers; empty: the model alone.
        Raises:
            QueueFullError: So many wait already.
            ValueError: The model can't be served with what a request asks for.
        """
        for request in requests:
            self._refuse(request)
        chosen = self.adapters.named(adapter) if self.adapters else None
        job = Job(sink, time.monotonic() + self.limits.request_seconds)
        sequences = [
            Sequence(index, request, job, self.tokenizer, self.end_ids, chosen)
            for index, request in enumerate(requests)
        ]
        with self._changed:
            if self._closing or self.failure:
                raise QueueFullError(self.failure or "the server is stopping")
            if len(self._waiting) + len(requests) > self.limits.max_queue + self._free_rows():
                raise QueueFullError(f"{len(self._waiting)} requests wait already")
            self._waiting.extend(sequences)
            self._unfinished.update(sequences)
            self._changed.notify()
        return job

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def under_way(self) -> int:
        return len(self._reading) + len(self._answering) + len(self._alone)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and self.failure is None

    def close(self) -> None:
        """Finish what is running, then end the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    # --- the thread ---------------------------------------------------------------------

    def _free_rows(self) -> int:
        return max(0, self.limits.max_batch - self.under_way)

    def _new_cache(self, prompts: int = 0) -> BatchCache:
        return BatchCache(prompts=prompts, plan=self.how.plan)

    def _refuse(self, request: SequenceRequest) -> None:
        """Raise ValueError for contrastive search where its candidates can't share a batch."""
        can_search = self.how.shares_batch(request.most_tokens) and not self.how.plan
        if request.sampling.penalty_alpha and not can_search:
            raise ValueError("penalty_alpha can't be used with this model. Leave it out.")

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                while self._await_work():
                    self._drop_given_up()
                    self._admit()
                    self._read_prompts()
                    self._answer()
                    self._answer_alone()
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
            # It may have been on its way from one list to the next.
            left = list(self._unfinished)
            self._waiting.clear()
        for sequence in left:
            self._tell(sequence, sequence.finished("error"))
        self._deliver()
        self.on_failure()

    def _tell(self, sequence: Sequence, event: Event) -> None:
        self.num_answered += event.token_id is not None
        if event.finish:
            self._unfinished.discard(sequence)
        self._events.setdefault(sequence.job, []).append(event)

    def _deliver(self) -> None:
        events, self._events = self._events, {}
        for job, its_events in events.items():
            try:
                job.sink(its_events)
            except Exception:  # noqa: BLE001 - of one client, printed whole; the others continue
                job.cancel()
                traceback.print_exc()

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
        """Start the sequences that come next; short prompts are read several together."""
        if self._reading:
            return
        longest = 0
        with self._changed:
            while self._waiting and self._free_rows():
                request = self._waiting[0].request
                if not self._fits(request):
                    break
                if request.sampling.penalty_alpha:
                    self._alone.append(ContrastiveSearch(self.model, self._waiting.popleft()))
                    continue
                if not self.how.shares_batch(request.most_tokens):
                    if self._alone and self.how.way == "one_at_a_time":
                        break
                    self._alone.append(self._alone_answer(self._waiting.popleft()))
                    continue
                longest = max(longest, len(request.prompt_ids))
                if self._reading and not self._read_together(longest):
                    break
                self._reading.append(self._waiting.popleft())
        self._incoming = self._new_cache(prompts=len(self._reading))
        self._read_columns = 0

    def _read_together(self, longest: int) -> bool:
        """Whether one more prompt fits beside those being read."""
        fits = longest * (len(self._reading) + 1) <= PROMPT_PIECE_TOKENS
        return fits and self.how.way == "batched"

    def _alone_answer(self, sequence: Sequence) -> AloneAnswer:
        cached = self.how.way != "whole_passes"
        return AloneAnswer(self._call, sequence, cached=cached, rope=self.how.rope)

    def _fits(self, request: SequenceRequest) -> bool:
        """Whether there is memory for one more, if all answers get as long as they may."""
        alone = [answer.sequence for answer in self._alone]
        others = [s.request for s in (*self._reading, *self._answering, *alone)]
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
        piece = max(1, PROMPT_PIECE_TOKENS // len(lengths))
        columns = total if self.how.way == "prompts_alone" else min(piece, total - begin)
        lengths_after = [max(0, length - (total - begin - columns)) for length in lengths]
        firsts = [length - total + begin for length in lengths]  # negative in the padding
        ids = torch.tensor(
            [
                _padded(sequence.request.prompt_ids, first, columns)
                for sequence, first in zip(self._reading, firsts, strict=True)
            ]
        )
        wanted = any(s.request.prompt_logprobs for s in self._reading)
        with self._adapters_of(self._reading):
            logits = self._forward(self._incoming, ids, lengths_after, 0 if wanted else 1)
        if wanted:
            for sequence, row, first in zip(self._reading, logits, firsts, strict=True):
                if sequence.request.prompt_logprobs:
                    with _isolated(sequence):
                        sequence.score_prompt(row, first)
        self._read_columns += columns
        if self._read_columns == total:
            self._take_over(logits[:, -1])

    def _take_over(self, logits: torch.Tensor) -> None:
        """Choose the first token after each prompt that was read; logits (rows, vocabulary)."""
        read, self._reading = self._reading, []
        continuing = []
        for row, sequence in enumerate(read):
            reason = sequence.given_up
            if reason is None and sequence.request.prompt_logprobs:
                self._tell(sequence, sequence.prompt_event())
            if reason is None and sequence.request.max_new_tokens == 0:
                reason = "length"
            if reason:
                self._tell(sequence, sequence.finished(reason))
            elif not self._next_token(sequence, logits[row]):
                continuing.append(row)
        if len(continuing) == len(read) and not self._answering:
            self._cache = self._incoming
        elif continuing:
            self._cache.join(self._incoming, continuing)
        self._answering += [read[row] for row in continuing]
        self._incoming = self._new_cache()

    def _answer(self) -> None:
        """Give every answering sequence its next token."""
        if not self._answering:
            return
        ids = torch.tensor([[s.answer_ids[-1]] for s in self._answering])
        lengths_after = [length + 1 for length in self._cache.lengths]
        with self._adapters_of(self._answering):
            logits = self._forward(self._cache, ids, lengths_after, 1)[:, -1]
        self.num_passes += 1
        finished = [
            row
            for row, sequence in enumerate(self._answering)
            if self._next_token(sequence, logits[row])
        ]
        for row in reversed(finished):
            self._leave(row)

    def _answer_alone(self) -> None:
        """Give every sequence that is answered by itself its next token."""
        for answer in list(self._alone):
            sequence = answer.sequence
            reason = sequence.given_up
            events = [sequence.finished(reason)] if reason else []
            with _isolated(sequence), self._adapters_of([sequence]):
                events = events or answer.step()
            events = events or [sequence.finished("error")]
            self.num_passes += not reason
            for event in events:
                self._tell(sequence, event)
            if events[-1].finish:
                self._alone.remove(answer)

    def _forward(
        self, cache: BatchCache, ids: torch.Tensor, lengths_after: list[int], keep: int
    ) -> torch.Tensor:
        """Logits, shape (rows, T or `keep`, vocabulary); `keep` 0: of every column."""
        columns = ids.shape[1]
        mask, positions = cache.inputs_for(lengths_after, columns)
        named = {self._call.cache_argument: cache}
        logits = self._call(ids, mask, positions, cache=named, keep=keep).logits
        cache.advance(lengths_after, columns)
        return logits.float().cpu()

    def _adapters_of(self, rows: list[Sequence]) -> contextlib.AbstractContextManager[None]:
        """Passes in the block are computed with the adapters of `rows`, in their order."""
        if self.adapters is None:
            return contextlib.nullcontext()
        return self.adapters.of([sequence.adapter for sequence in rows])

    def _next_token(self, sequence: Sequence, logits: torch.Tensor) -> bool:
        """Choose and tell the next token; whether the answer is finished."""
        event = sequence.finished("error")
        with _isolated(sequence):
            event = sequence.add(sequence.choose(logits), logits)
        self._tell(sequence, event)
        return event.finish is not None


@contextlib.contextmanager
def _isolated(sequence: Sequence) -> Iterator[None]:
    """What fails for one sequence ends that sequence; the others are answered on.

    An error of the accelerator itself leaves nothing to continue with.
    """
    try:
        yield
    except torch.AcceleratorError:
        raise
    except Exception:  # noqa: BLE001 - whatever it is, printed whole
        sequence.failed = True
        traceback.print_exc()


def _padded(ids: tuple[int, ...], first: int, columns: int) -> list[int]:
    """`columns` ids from the one numbered `first` on; zeros before the first of all."""
    padding = min(columns, max(0, -first))
    return [0] * padding + list(ids[first + padding : first + columns])
