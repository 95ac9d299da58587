"""How much training on each text moved a target's loss, to first order: TracIn.

Of a state w with learning rate r, training on a text z moves the target's loss by
-r <gradient of z, gradient of the target>. Added up over the kept checkpoints, r being the sum of
the rates of the steps that a checkpoint stands for.
Source: Pruthi et al., "Estimating Training Data Influence by Tracing Gradient Descent", 2020.

No gradient of z is made. The inner product is the derivative of z's loss along the target's
gradient u: (loss(w + e u) - loss(w - e u)) / 2e. So it comes for each token, and a context that
spans documents is shared out exactly; it costs two forward passes of whole batches, with any
layers, and no memory but u. The error falls with the square of e.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.blaming.states import State, model_at, token_losses, trained_parameters
from trainer.blaming.suspects import Texts
from trainer.blaming.target import Target, in_batches, part_at, positions_of, trained_tokens_of
from trainer.contract import events
from trainer.tokens.store import TokenStore
from trainer.training.data.batches import read_batch
from trainer.training.job import Job

MOVED = 0.01  # nats that a step to either side moves the target's loss: above fp32's rounding
LARGEST_STEP = 1e-2  # of the weights' norm


def influence(
    job: Job, store: TokenStore, target: Target, texts: Texts, states: list[State]
) -> np.ndarray:
    """By text: how much training on it raised the target's loss, (texts,); relative figures.

    Above what as many average tokens did: all text teaches the language, and that would hide what
    a text says. Below 0 it lowered the loss.
    """
    found, tokens = first_order(job, store, target, texts, states)
    return found - tokens * (found.sum() / max(1.0, tokens.sum()))


def first_order(
    job: Job, store: TokenStore, target: Target, texts: Texts, states: list[State]
) -> tuple[np.ndarray, np.ndarray]:
    """By text: the sum of -rate <gradient of its tokens, the target's>, and its tokens; (texts,).

    Two passes over the training contexts for each state.
    """
    contexts = job.plan.kept(np.arange(store.manifest.num_train_contexts))
    found, passes = np.zeros(len(texts.documents)), 2 * len(states)
    tokens = np.zeros(len(found))
    for number, state in enumerate(states):
        model = model_at(job, state.place)
        along = gradient(model, target)
        step = step_size(model, along)
        for half, sign in enumerate((1, -1)):
            done = (2 * number + half) * len(contexts)
            with torch.no_grad(), moved(model, along, sign * step):
                for losses, positions in _losses(model, store, contexts, done, passes):
                    of_texts = texts.of_part[part_at(store, positions)]
                    weights = losses * (-sign * state.rate / (2 * step))
                    found += np.bincount(of_texts, weights, len(found))
                    tokens += np.bincount(of_texts, minlength=len(found))
    return found, tokens / max(1, passes)


def _losses(
    model: Any, store: TokenStore, contexts: np.ndarray, done: int, passes: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """By batch the loss of each trained token, and its place in the stream."""
    total = passes * len(contexts)
    for chosen in in_batches(store, contexts):
        batch = read_batch(store, chosen)
        losses = token_losses(model, batch).double().cpu().numpy()
        yield losses, positions_of(store, chosen, trained_tokens_of(batch))
        done += len(chosen)
        events.progress(label="influence", done=done, total=total, unit="contexts")


def gradient(model: Any, target: Target) -> dict[str, Tensor]:
    """The gradient of the target's mean loss, by parameter."""
    model.zero_grad()
    count = 0
    for batch in target.batches:
        losses = token_losses(model, batch)
        losses.sum().backward()
        count += len(losses)
    found = {
        name: (torch.zeros_like(p) if p.grad is None else p.grad / count)
        for name, p in trained_parameters(model).items()
    }
    model.zero_grad()
    return found


def step_size(model: Any, along: dict[str, Tensor]) -> float:
    """How far to go: far enough to be seen in fp32, and near enough for a straight line."""
    slope = float(sum((part.double() ** 2).sum() for part in along.values()))
    weights = float(
        sum((p.detach().double() ** 2).sum() for p in trained_parameters(model).values())
    )
    if not slope:
        return 1.0
    return min(MOVED / slope, LARGEST_STEP * (weights / slope) ** 0.5)


@contextmanager
def moved(model: Any, along: dict[str, Tensor], step: float) -> Iterator[None]:
    """The model with its weights a step further; afterwards they are what they were, to the bit."""
    parameters = trained_parameters(model)
    kept = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        parameter.add_(along[name], alpha=step)
    try:
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.copy_(kept[name])
