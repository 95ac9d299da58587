"""Choose the next token of one sequence from its logits.

Each sequence is treated on its own, with its own random numbers, so what it gets
does not depend on the others in its batch. Order and meaning of the settings are
those of transformers' `generate`, so greedy answers are the same ids.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the tokens of one sequence are chosen; the defaults choose the likeliest."""

    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0  # over prompt and answer, as transformers counts
    presence_penalty: float = 0.0  # over the answer alone, as OpenAI counts
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    bad_words: tuple[tuple[int, ...], ...] = ()  # token ids of sequences never to complete
    penalty_alpha: float = 0.0  # above 0: contrastive search, see contrastive.py
    seed: int | None = None

    @property
    def is_plain_greedy(self) -> bool:
        """Whether the choice is the largest logit and nothing else."""
        return (
            not self.do_sample
            and self.repetition_penalty == 1.0
            and not (self.presence_penalty or self.frequency_penalty)
            and not (self.logit_bias or self.bad_words)
        )


def choose_token(
    logits: torch.Tensor,
    sampling: Sampling,
    prompt_ids: Sequence[int],
    answer_ids: Sequence[int],
    forbidden: Sequence[int],
    rng: random.Random,
) -> int:
    """The next token's id.

    Args:
        logits: The model's, shape (vocabulary,); left as they are.
        sampling: The sequence's settings.
        prompt_ids: Tokens asked with.
        answer_ids: Tokens answered so far.
        forbidden: Ids that may not come now: end-of-text while the answer is too short.
        rng: The sequence's own random numbers; one is used for each sampled token.
    """
    scores = penalized(logits, sampling, prompt_ids, answer_ids, forbidden)
    if not sampling.do_sample:
        return int(scores.argmax())
    return _sample(scores, sampling, rng)


def penalized(
    logits: torch.Tensor,
    sampling: Sampling,
    prompt_ids: Sequence[int],
    answer_ids: Sequence[int],
    forbidden: Sequence[int],
) -> torch.Tensor:
    """The logits after penalties, biases and bans; shapes as in `choose_token`."""
    scores = logits.float().clone()
    if sampling.repetition_penalty != 1.0:
        seen = torch.tensor(sorted({*prompt_ids, *answer_ids}), device=scores.device)
        values = scores[seen]
        penalty = sampling.repetition_penalty
        scores[seen] = torch.where(values < 0, values * penalty, values / penalty)
    if sampling.presence_penalty or sampling.frequency_penalty:
        counts = torch.bincount(
            torch.tensor(list(answer_ids), dtype=torch.long), minlength=len(scores)
        ).to(scores)
        scores -= sampling.frequency_penalty * counts + sampling.presence_penalty * (counts > 0)
    if sampling.logit_bias:
        biased = torch.tensor(list(sampling.logit_bias), device=scores.device)
        scores[biased] += torch.tensor(list(sampling.logit_bias.values())).to(scores)
    for word in sampling.bad_words:
        begun = len(word) - 1
        if begun == 0 or (*prompt_ids, *answer_ids)[-begun:] == word[:-1]:
            scores[word[-1]] = -torch.inf
    for token_id in forbidden:
        scores[token_id] = -torch.inf
    return scores


def _sample(scores: torch.Tensor, sampling: Sampling, rng: random.Random) -> int:
    scores = scores / sampling.temperature
    kept = min(sampling.top_k or len(scores), len(scores))
    values, ids = scores.topk(kept)  # (K,), largest first
    # In double precision: the sum of many small shares decides where a draw falls.
    shares = values.double().softmax(0)
    if sampling.top_p < 1.0:
        # The fewest tokens that together reach top_p.
        keep = shares.cumsum(0) - shares < sampling.top_p
        values, ids = values[keep], ids[keep]
        shares = values.double().softmax(0)
    if sampling.typical_p < 1.0:
        ids, shares = _typical(ids, shares, sampling.typical_p)
    reached = shares.cumsum(0)
    # The inverse of the distribution function: one draw picks one token.
    place = int(torch.searchsorted(reached, rng.random() * float(reached[-1]), right=True))
    return int(ids[min(place, len(ids) - 1)])


def _typical(
    ids: torch.Tensor, shares: torch.Tensor, typical_p: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens nearest to the expected surprise that together reach `typical_p`.

    Source: Meister et al., Locally Typical Sampling, arXiv:2202.00666.
    """
    surprise = -shares.log()
    expected = torch.nansum(shares * surprise)
    order = (surprise - expected).abs().argsort(stable=True)
    ids, shares = ids[order], shares[order]
    keep = shares.cumsum(0) - shares < typical_p
    return ids[keep], shares[keep] / shares[keep].sum()
