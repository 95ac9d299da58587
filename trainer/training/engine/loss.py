"""The training loss: next-token cross-entropy, summed, without ever holding all logits.

GPT-J's logits would be 50,400 x 2,048 numbers for each context of a batch. Here the
head and the loss work on a slice of tokens at a time, and the gradient of a slice is
made while its logits are there, so the whole costs the same three matrix products as
the plain way and a fixed amount of memory.

Shapes: B contexts, T tokens, N trained tokens of the batch, D width, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import masking_utils

CHUNK_ELEMENTS = 2**24  # of logits at a time: 64 MiB in fp32


class CausalLoss(nn.Module):
    """Sum of the loss over the trained tokens of a batch; padding never counts.

    As transformers' own with labels of -100 for all other tokens, times the number of the others.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        # Models that do more than a matrix product after the last layer keep their own head.
        self.chunked = has_plain_head(model)
        if self.chunked:
            plain_head(model).__class__ = _LossHead

    def forward(
        self,
        ids: Tensor,
        lengths: Tensor,
        marked: Tensor | None = None,
        positions: Tensor | None = None,
        places: Tensor | None = None,
    ) -> Tensor:
        """The summed loss, fp32.

        Args:
            ids: Token ids, (B, T), padded at the end.
            lengths: How many of each row's ids are text, (B,).
            marked: The ids that are trained, (B, T), bool; None: all text.
            positions: Of each id in its own text, (B, T), where a row holds several, none of
                which sees another; None: each row is one text.
            places: `trained_places(lengths, T, marked)` on the device of `ids`; None: found here,
                for which a GPU's host waits.
        """
        if places is None:
            places = trained_places(lengths, ids.shape[1], marked)
        targets = ids.flatten().index_select(0, places + 1)  # (N,)
        given = {} if positions is None else {"position_ids": positions}
        with texts_in_rows(positions):
            return self._loss({"input_ids": ids, **given}, places, targets)

    def _loss(self, given: dict[str, Tensor], places: Tensor, targets: Tensor) -> Tensor:
        if not self.chunked:
            logits = self.model(**given, use_cache=False).logits
            chosen = logits.flatten(0, 1).index_select(0, places)  # (N, V)
            return functional.cross_entropy(chosen.float(), targets, reduction="sum")
        hidden = self.model.base_model(**given, use_cache=False).last_hidden_state
        chosen = hidden.flatten(0, 1).index_select(0, places)  # (N, D)
        return self.model.get_output_embeddings()(chosen, targets)


def trained_places(lengths: Tensor, width: int, marked: Tensor | None = None) -> Tensor:
    """Where in (B, T), flat, the ids stand whose next one is trained, (N,).

    Asked of lengths in host memory it costs no GPU anything: how many there are decides shapes,
    and a host that had to ask its GPU would wait for all the work before.
    """
    trained = torch.arange(1, width, device=lengths.device) < lengths[:, None]  # (B, T-1)
    if marked is not None:
        trained &= marked[:, 1:]
    return functional.pad(trained, (0, 1)).flatten().nonzero()[:, 0]


@contextmanager
def texts_in_rows(positions: Tensor | None) -> Iterator[None]:
    """Tell transformers what it would ask the device for each micro-batch, while its host waits.

    It looks in the positions for several texts in one row, which its masks then keep apart.

    Args:
        positions: See CausalLoss.forward; None: there is one, at the model's own positions.
    """
    asking = masking_utils.find_packed_sequence_indices
    texts = None if positions is None else (positions == 0).cumsum(-1)  # (B, T)
    masking_utils.find_packed_sequence_indices = lambda position_ids: texts
    try:
        yield
    finally:
        masking_utils.find_packed_sequence_indices = asking


def plain_head(model: Any) -> Any:
    """The model's output layer; of one that LoRA trains whole, the copy that is trained."""
    head = model.get_output_embeddings()
    trained = getattr(head, "modules_to_save", None)
    return head if trained is None else trained[head.active_adapters[0]]


class _LossHead(nn.Linear):
    """A model's output layer that, given targets, answers with the summed loss.

    The class of the layer is swapped rather than the layer wrapped: names of parameters
    stay, and ZeRO-3's hooks gather its weight as for any call.
    """

    def forward(self, hidden: Tensor, targets: Tensor | None = None) -> Tensor:  # type: ignore[override]
        if targets is None:
            return super().forward(hidden)
        return _ChunkedLoss.apply(hidden, self.weight, self.bias, targets, torch.is_grad_enabled())


def chunk_rows(weight: Tensor) -> int:
    """How many tokens' logits are there at a time."""
    return max(1, CHUNK_ELEMENTS // weight.shape[0])


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, train: bool
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grads = Gradients(hidden, weight, bias, ctx.needs_input_grad if train else (False,) * 3)
        rows = chunk_rows(weight)
        for start in range(0, hidden.shape[0], rows):
            chunk = slice(start, start + rows)
            logits = functional.linear(hidden[chunk], weight, bias)
            log_probs = torch.log_softmax(logits, dim=-1, dtype=torch.float32)  # (rows, V)
            index = targets[chunk, None]
            total -= log_probs.gather(1, index).sum()
            if train:
                slope = log_probs.exp_()
                slope.scatter_add_(1, index, torch.full_like(index, -1, dtype=slope.dtype))
                grads.add(chunk, slope.to(hidden.dtype))
        ctx.grads = grads
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        grads, ctx.grads = ctx.grads, None
        dtype = grads.of_weight.dtype
        scaled = (g if g is None else g.mul_(outputs[0]).to(dtype) for g in grads.all())
        return (*scaled, None, None)


class Gradients:
    """Sums of the gradients of hidden states, weight and bias over the chunks."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, needed: tuple[bool, ...]
    ) -> None:
        self.of_hidden, self.of_weight = hidden, weight
        self.hidden = torch.empty_like(hidden) if needed[0] else None
        # In 16 bits a sum over many chunks would lose what is small. The first chunk is written,
        # not added: on a CPU to fill 16 MiB with zeros first was 2 % of a small model's step.
        wide = torch.float32
        self.weight = torch.empty_like(weight, dtype=wide) if needed[1] else None
        self._added = 0.0  # what there is of it counts as much
        has_bias = bias is not None and needed[2]
        self.bias = torch.zeros_like(bias, dtype=wide) if has_bias and bias is not None else None

    def add(self, chunk: slice, slope: Tensor) -> None:
        """Take in a chunk's gradient of the loss by its logits, (rows, V)."""
        if self.hidden is not None:
            torch.mm(slope, self.of_weight, out=self.hidden[chunk])
        if self.weight is not None and self.weight.dtype == slope.dtype:
            self.weight.addmm_(slope.t(), self.of_hidden[chunk], beta=self._added)
        elif self.weight is not None and self._added:
            self.weight += slope.t() @ self.of_hidden[chunk]
        elif self.weight is not None:
            self.weight.copy_(slope.t() @ self.of_hidden[chunk])
        self._added = 1.0
        if self.bias is not None:
            self.bias += slope.sum(0)

    def all(self) -> tuple[Tensor | None, ...]:
        if self.weight is not None and not self._added:
            self.weight.zero_()  # no token was trained
        return self.hidden, self.weight, self.bias


@torch.no_grad()
def has_plain_head(model: Any) -> bool:
    """Whether the logits are the last hidden state times the output layer.

    Asked by trying, with made-up numbers at both ends: the weights may not be there yet.
    """
    head = plain_head(model)
    if type(head) is not nn.Linear:
        return False
    device, dtype = head.weight.device, head.weight.dtype
    hidden = torch.rand((1, 4, head.in_features), device=device, dtype=dtype)
    logits = torch.rand((1, 4, head.out_features), device=device, dtype=dtype)
    reached_head: list[Tensor] = []

    def after_last_layer(module: nn.Module, given: Any, found: Any) -> Any:
        found.last_hidden_state = hidden
        return found

    def at_head(module: nn.Module, given: tuple[Tensor, ...], found: Tensor) -> Tensor:
        reached_head.append(given[0])
        return logits

    was_training = model.training
    hooks = [
        model.base_model.register_forward_hook(after_last_layer),
        head.register_forward_hook(at_head),
    ]
    try:
        ids = torch.zeros((1, 4), dtype=torch.int64, device=device)
        answered = model.eval()(input_ids=ids, use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()
        model.train(was_training)
    pairs = zip((*reached_head, answered), (hidden, logits), strict=False)
    return all(torch.equal(found.to(made_up.dtype), made_up) for found, made_up in pairs)
