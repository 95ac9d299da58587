"""Answer one sequence by itself: with transformers' own cache, or by whole passes without any.

For models whose cache cannot hold several sequences of different lengths, and for
sequences that must not share a batch. Each has its own cache, so they do not touch
each other; the engine gives each one token in turn.
"""

from typing import Any

import torch

from trainer.serving.engine.sequences import Event, Sequence
from trainer.serving.model_calls import ModelCall
from trainer.serving.rope_limits import RopeLimits


class AloneAnswer:
    """One sequence answered by itself; call `step` until an event says that it is finished."""

    def __init__(
        self, call: ModelCall, sequence: Sequence, *, cached: bool, rope: RopeLimits
    ) -> None:
        self.sequence = sequence
        self._reader = AloneReader(call, cached=cached, rope=rope)

    def step(self) -> list[Event]:
        """Read the prompt, or the last token, and choose the next one."""
        sequence, request = self.sequence, self.sequence.request
        prompt_read = self._reader.num_read > 0
        wants_all = request.prompt_logprobs and not prompt_read
        new = sequence.answer_ids[-1:] if prompt_read else list(request.prompt_ids)
        logits = self._reader.read(new, keep=0 if wants_all else 1)
        events = []
        if wants_all:
            sequence.score_prompt(logits, 0)
            events.append(sequence.prompt_event())
        if request.max_new_tokens == 0:
            return [*events, sequence.finished("length")]
        return [*events, sequence.add(sequence.choose(logits[-1]), logits[-1])]


class AloneReader:
    """Logits of one growing text."""

    def __init__(self, call: ModelCall, *, cached: bool, rope: RopeLimits) -> None:
        self._call, self._cached, self._rope = call, cached, rope
        self._ids: list[int] = []
        self._cache: dict[str, Any] | None = None

    @property
    def num_read(self) -> int:
        return len(self._ids)

    def read(self, new: list[int], keep: int = 1) -> torch.Tensor:
        """Read more ids; logits of the last `keep` (0: of all new ones), (T, vocabulary)."""
        before = len(self._ids)
        self._ids += new
        after = len(self._ids)
        if not self._cached or self._rope.changes_between(before, after):
            self._cache, before = None, 0  # what was cached was rotated by other angles
        ids = torch.tensor([self._ids[before:]])
        positions = torch.arange(before, after).unsqueeze(0)
        options: dict[str, Any] = {"use_cache": self._cached, "keep": keep or len(new)}
        output = self._call(ids, None, positions, cache=self._cache, **options)
        if self._cached:
            made = self._call.own_cache(output)
            if not made and self._cache is None:  # it fills a cache, but does not make one
                made = self._call.new_cache()
                output = self._call(ids, None, positions, cache=made, **options)
            self._cache = made or self._cache
        return output.logits[0].float().cpu()
