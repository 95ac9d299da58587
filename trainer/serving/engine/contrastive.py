"""Contrastive search: likely tokens whose meaning is not what was just said.

Each of the `top_k` likeliest tokens is tried: its probability counts for it, the
largest cosine similarity of its hidden state to those of all tokens so far against
it, weighed by `penalty_alpha`. A sequence that asks for it runs `top_k` rows of its
own beside the common batch, because it needs hidden states of tokens not chosen.

Shapes: K candidates, T tokens, D hidden size, V vocabulary.
Source: Su et al., A Contrastive Framework for Neural Text Generation, arXiv:2202.06417.
"""

from typing import Any

import torch

from trainer.serving.engine.kv_cache import BatchCache
from trainer.serving.engine.sampling import penalized
from trainer.serving.engine.sequences import Event, Sequence
from trainer.serving.model_calls import ModelCall


class ContrastiveSearch:
    """One sequence answered this way; call `step` until its event says it is finished."""

    def __init__(self, model: Any, sequence: Sequence) -> None:
        self.sequence = sequence
        self._model = model
        self._call = ModelCall(model)
        self._rows = BatchCache()
        self._context: torch.Tensor | None = None  # (T, D), each of length 1
        self._logits: torch.Tensor | None = None  # (V,), of the next token

    def step(self) -> list[Event]:
        """Choose one more token."""
        if self._logits is None:
            self._read_prompt()
        assert self._logits is not None and self._context is not None
        sampling, sequence = self.sequence.request.sampling, self.sequence
        scores = penalized(
            self._logits,
            sampling,
            sequence.request.prompt_ids,
            sequence.answer_ids,
            sequence.forbidden_ids,
        )
        shares, candidates = scores.softmax(-1).topk(min(sampling.top_k, len(scores)))  # (K,)
        logits, hidden = self._forward(self._rows, candidates.unsqueeze(1))
        hidden = torch.nn.functional.normalize(hidden[:, -1], dim=-1)  # (K, D)
        alike = (hidden @ self._context.T).amax(-1)  # (K,)
        alpha = sampling.penalty_alpha
        # A token that may not come has no share, and being unlike the rest must not bring it back.
        worth = torch.where(shares > 0, (1 - alpha) * shares - alpha * alike, -torch.inf)
        best = int(worth.argmax())
        event = sequence.add(int(candidates[best]), self._logits)
        self._rows.follow(best)
        self._context = torch.cat([self._context, hidden[best : best + 1]])
        self._logits = logits[best, -1]
        return [event]

    def _read_prompt(self) -> None:
        ids = torch.tensor([self.sequence.request.prompt_ids])
        alone = BatchCache(prompts=1)
        logits, hidden = self._forward(alone, ids)
        self._context = torch.nn.functional.normalize(hidden[0], dim=-1)
        self._logits = logits[0, -1]
        candidates = min(self.sequence.request.sampling.top_k, len(self._logits))
        self._rows.join(alone, [0] * candidates)

    def _forward(self, cache: BatchCache, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (rows, T, V) and last hidden states (rows, T, D) of `ids` (rows, T)."""
        columns, hidden = ids.shape[1], []
        lengths_after = [length + columns for length in cache.lengths]
        mask, positions = cache.inputs_for(lengths_after, columns)
        # What enters the output layer is the last hidden state, in every architecture.
        hook = self._model.get_output_embeddings().register_forward_pre_hook(
            lambda module, inputs: hidden.append(inputs[0])
        )
        try:
            named = {self._call.cache_argument: cache}
            logits = self._call(ids, mask, positions, cache=named).logits
        finally:
            hook.remove()
        cache.advance(lengths_after, columns)
        return logits.float().cpu(), hidden[0].float().cpu()
