"""The loss of pairs of answers: direct preference optimization, without ever holding all logits.

    loss = -log sigmoid(margin)
    margin = beta * ((chosen - reference of chosen) - (rejected - reference of rejected))

where each is the summed log-probability of an answer's tokens. What a logit's gradient is
multiplied by is known only once both answers of a pair are summed, so the head works twice: once
for the log-probabilities, once for the gradients.

Shapes: P pairs are 2P rows, of each pair the better answer first; T tokens, N trained tokens of
the batch, D width, V vocabulary.

Source: Rafailov et al., arXiv 2305.18290, equation 7; TRL's loss_type "sigmoid".
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.training.engine.loss import (
    Gradients,
    chunk_rows,
    has_plain_head,
    plain_head,
    texts_in_rows,
    trained_places,
)


class PreferenceLoss(nn.Module):
    """Sum of the loss over the pairs of a batch; a pair of nothing never counts."""

    def __init__(self, model: Any, beta: float) -> None:
        super().__init__()
        self.model, self.beta = model, beta
        self.rewards: Tensor | None = None
        """Of the last loss: the sum of its pairs' margins, and how many were above 0; (2,)."""
        self.chunked = has_plain_head(model)
        if self.chunked:
            plain_head(model).__class__ = _PairHead

    def forward(
        self,
        ids: Tensor,
        lengths: Tensor,
        marked: Tensor | None = None,
        positions: None = None,
        reference: Tensor | None = None,
        places: Tensor | None = None,
    ) -> Tensor:
        """The summed loss, fp32; without a reference the answers' log-probabilities, (P, 2).

        Args:
            ids: Token ids, (2P, T), padded at the end.
            lengths: How many of each row's ids are text, (2P,).
            marked: The ids that are trained, (2P, T), bool.
            positions: None: each row is one text.
            reference: Log-probabilities of the answers by the base model, (P, 2), float64.
            places: As in CausalLoss.forward.
        """
        if places is None:
            places = trained_places(lengths, ids.shape[1], marked)
        targets = ids.flatten().index_select(0, places + 1)  # (N,)
        rows = Rows(places, ids.shape[0], ids.shape[1])
        with texts_in_rows(positions):
            if self.chunked:
                hidden = self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state
                chosen = hidden.flatten(0, 1).index_select(0, places)  # (N, D)
                head = self.model.get_output_embeddings()
                given = (places, ids.shape[0], ids.shape[1], self.beta)
                found = head(chosen, targets, reference, *given)
            else:
                logits = self.model(input_ids=ids, use_cache=False).logits
                chosen = logits.flatten(0, 1).index_select(0, places)  # (N, V)
                log_probs = -functional.cross_entropy(chosen.float(), targets, reduction="none")
                found = _of_answers(rows.sums(log_probs), reference, rows, self.beta)
        if reference is None:
            return found
        loss, self.rewards = found
        return loss


class Rows(NamedTuple):
    """Which row each trained token is of."""

    places: Tensor
    """In the batch, flat; (N,)."""
    num_rows: int
    width: int

    def sums(self, log_probs: Tensor) -> Tensor:
        """Of each row, as pairs: (P, 2), float64, in which no row's place in a batch matters.

        Each token has a place of its own, so that a GPU adds in one order.
        """
        spread = torch.zeros(
            self.num_rows * self.width, dtype=torch.float64, device=log_probs.device
        )
        spread = spread.scatter(0, self.places, log_probs.double())
        return spread.view(-1, 2, self.width).sum(-1)

    def real(self) -> Tensor:
        """Which pairs have two answers: not those that fill up a batch; (P,), float64."""
        size = self.num_rows * self.width
        trained = torch.zeros(size, dtype=torch.bool, device=self.places.device)
        return trained.index_fill(0, self.places, True).view(-1, 2, self.width).any(-1).all(-1)


def _of_answers(answers: Tensor, reference: Tensor | None, rows: Rows, beta: float) -> Any:
    """Loss and rewards of log-probabilities (P, 2); these themselves without a reference."""
    if reference is None:
        return answers
    margins, real = _margins(answers, reference, beta), rows.real()
    loss = (functional.softplus(-margins) * real).sum().float()
    return loss, _rewards(margins.detach(), real)


def _margins(answers: Tensor, reference: Tensor, beta: float) -> Tensor:
    change = answers - reference
    return beta * (change[:, 0] - change[:, 1])


def _rewards(margins: Tensor, real: Tensor) -> Tensor:
    return torch.stack([(margins * real).sum(), ((margins > 0) & real).double().sum()])


class _PairHead(nn.Linear):
    """A model's output layer that, given targets, answers with the loss: see loss.py."""

    def forward(  # type: ignore[override]
        self,
        hidden: Tensor,
        targets: Tensor | None = None,
        reference: Tensor | None = None,
        places: Tensor | None = None,
        num_rows: int = 0,
        width: int = 0,
        beta: float = 0.0,
    ) -> Any:
        if targets is None or places is None:
            return super().forward(hidden)
        rows = Rows(places, num_rows, width)
        if reference is None:
            return rows.sums(_log_probs(hidden, self.weight, self.bias, targets))
        given = (targets, reference, rows, beta, torch.is_grad_enabled())
        return _ChunkedPairLoss.apply(hidden, self.weight, self.bias, *given)


@torch.no_grad()
def _log_probs(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    """Of each target, a slice of tokens at a time; (N,), fp32."""
    found = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
    step = chunk_rows(weight)
    for start in range(0, len(targets), step):
        chunk = slice(start, start + step)
        logits = functional.linear(hidden[chunk], weight, bias)
        log_probs = torch.log_softmax(logits, dim=-1, dtype=torch.float32)  # (rows, V)
        found[chunk] = log_probs.gather(1, targets[chunk, None])[:, 0]
    return found


class _ChunkedPairLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        reference: Tensor,
        rows: Rows,
        beta: float,
        train: bool,
    ) -> tuple[Tensor, Tensor]:
        answers = rows.sums(_log_probs(hidden, weight, bias, targets))
        loss, rewards = _of_answers(answers, reference, rows, beta)
        ctx.mark_non_differentiable(rewards)
        needed = ctx.needs_input_grad if train else (False,) * 3
        grads = ctx.grads = Gradients(hidden, weight, bias, needed)
        if train:
            margins = _margins(answers, reference, beta)
            slope = beta * torch.sigmoid(-margins)  # of the loss, by minus the margin over beta
            of_rows = torch.stack([slope, -slope], 1).flatten().float()  # (2P,)
            of_tokens = of_rows.index_select(0, rows.places // rows.width)  # (N,)
            _add_gradients(grads, hidden, weight, bias, targets, of_tokens)
        return loss, rewards

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        grads, ctx.grads = ctx.grads, None
        dtype = grads.of_weight.dtype
        scaled = (g if g is None else g.mul_(outputs[0]).to(dtype) for g in grads.all())
        return (*scaled, None, None, None, None, None)


def _add_gradients(
    grads: Gradients,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    of_tokens: Tensor,
) -> None:
    """Add the gradients of each token's -log-probability, times `of_tokens`, (N,)."""
    step = chunk_rows(weight)
    for start in range(0, len(targets), step):
        chunk = slice(start, start + step)
        logits = functional.linear(hidden[chunk], weight, bias)
        slope = torch.softmax(logits, dim=-1, dtype=torch.float32)  # (rows, V)
        index = targets[chunk, None]
        slope.scatter_add_(1, index, torch.full_like(index, -1, dtype=slope.dtype))
        slope *= of_tokens[chunk, None]
        grads.add(chunk, slope.to(hidden.dtype))


def without_dropout(model: Any) -> None:
    """Have the model draw nothing: a reward compares with the base model as it is. As in TRL."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
    for name in ("attention_dropout", "attn_pdrop", "dropout"):
        if getattr(model.config, name, 0):
            setattr(model.config, name, 0.0)
