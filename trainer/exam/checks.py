"""Check a small model against transformers' own code: loss, causality, the server's cache."""

import itertools
import queue
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from trainer.exam.small_run import made_up_tokenizer
from trainer.training.engine.loss import CausalLoss

CONTEXT, ROWS = 48, 2
SAME = 2e-4  # of log-probabilities and losses in fp32, whose sums come in another order
NEW_TOKENS = 12
SAME_PACKED = 1e-5
PACKED_LENGTHS = (19, 9, 20)  # of texts in a context: longer and shorter than windows

SERVED_SECONDS = 60.0

Generate = Callable[[Any, list[list[int]], int], list[list[tuple[int, float]]]]
"""Of a model, prompts and a number of tokens: each greedy token and its log-probability."""


class Failed(Exception):  # noqa: N818  it is a finding, not an error of ours
    """What a check found wrong."""


def some_ids(vocabulary: int, rows: int = ROWS, length: int = CONTEXT, seed: int = 1) -> Tensor:
    """Random token ids, (rows, length); none is 0 or 1, which may be padding."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, vocabulary, (rows, length), generator=generator)


def plain_logits(model: Any, ids: Tensor) -> Tensor:
    """Transformers' own forward pass, (rows, T, vocabulary), fp32."""
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits.float()


def check_causality(model: Any, ids: Tensor) -> None:
    """The last token changes nothing before it."""
    other = ids.clone()
    other[:, -1] = (ids[:, -1] - 1).clamp(min=2) + (ids[:, -1] <= 2)
    before, after = (plain_logits(model, x)[:, :-1].log_softmax(-1) for x in (ids, other))
    if not torch.isfinite(before).all():
        raise Failed("its logits are not finite")
    # Experts that take the most wanted tokens, for one, compare tokens with later ones.
    if (far := (before - after).abs().max().item()) > SAME:
        raise Failed(f"it sees later tokens: the last one changes log-probabilities by {far:.2g}")


def check_loss(model: Any, ids: Tensor) -> None:
    """The chunked loss and its gradients equal transformers' own."""
    model.train()
    tokens = ids.shape[0] * (ids.shape[1] - 1)
    model.zero_grad(set_to_none=True)
    theirs = _own_loss(model, ids)
    theirs.backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    lengths = torch.full((ids.shape[0],), ids.shape[1])
    ours = CausalLoss(model)(ids, lengths) / tokens
    ours.backward()
    model.eval()
    if abs(ours.item() - theirs.item()) > SAME * max(1.0, abs(theirs.item())):
        raise Failed(f"the loss is {ours.item():.5f}, transformers says {theirs.item():.5f}")
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    if lacking := expected.keys() - found.keys():
        raise Failed(f"{len(lacking)} parameters get no gradient, as {min(lacking)}")
    largest = max(g.abs().max().item() for g in expected.values())
    for name, gradient in expected.items():
        far = (found[name] - gradient).abs().max().item()
        if not far <= 2e-3 * max(largest * 0.1, gradient.abs().max().item()):
            raise Failed(f"the gradient of {name} is off by {far:.2g}")


def check_packed(model: Any, ids: Tensor) -> None:
    """Texts in one row have the mean losses that each has alone."""
    loss_of = CausalLoss(model.eval())
    row = ids[:1, : sum(PACKED_LENGTHS)]
    edges = [0, *itertools.accumulate(PACKED_LENGTHS)]
    positions = torch.cat([torch.arange(length) for length in PACKED_LENGTHS])[None]
    length = torch.tensor([row.shape[1]])
    for begin, end in itertools.pairwise(edges):
        trained = torch.zeros(row.shape, dtype=torch.bool)
        trained[:, begin + 1 : end] = True
        with torch.no_grad():
            packed = loss_of(row, length, trained, positions) / (end - begin - 1)
            alone = loss_of(row[:, begin:end], torch.tensor([end - begin])) / (end - begin - 1)
        if not abs(packed.item() - alone.item()) <= SAME_PACKED * max(1.0, alone.item()):
            raise Failed(
                f"the loss of a text at {begin} is {packed.item():.5f} beside others and "
                f"{alone.item():.5f} alone"
            )


def _own_loss(model: Any, ids: Tensor) -> Tensor:
    """Transformers' loss of ids; of decoders of BART's kind, which do not shift it, shifted."""
    out = model(input_ids=ids, labels=ids, use_cache=False)
    logits = out.logits.float()
    unshifted = functional.cross_entropy(logits.flatten(0, 1), ids.flatten())
    if abs(out.loss.item() - unshifted.item()) > SAME * max(1.0, unshifted.item()):
        return out.loss
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def check_cache(model: Any, ids: Tensor, generate: Generate) -> None:
    """Greedy tokens of the server, alone and beside others, equal those of whole passes."""
    long, short = ids[0, :21].tolist(), ids[1, :9].tolist()
    alone = [generate(model, [prompt], NEW_TOKENS)[0] for prompt in (long, short)]
    together = generate(model, [long, short], NEW_TOKENS)
    for name, answers in (("alone", alone), ("beside another", together)):
        for prompt, answer in zip((long, short), answers, strict=True):
            _compare_with_whole_passes(model, prompt, answer, name)


def _compare_with_whole_passes(
    model: Any, prompt: list[int], answer: list[tuple[int, float]], name: str
) -> None:
    if len(answer) < NEW_TOKENS:
        raise Failed(f"the server ends a text {name} after {len(answer)} of {NEW_TOKENS} tokens")
    chosen, scores = [i for i, _ in answer], torch.tensor([score for _, score in answer])
    whole = plain_logits(model, torch.tensor([[*prompt, *chosen[:-1]]]))[0, len(prompt) - 1 :]
    whole = whole.log_softmax(-1)  # (new tokens, vocabulary)
    right = whole.gather(1, torch.tensor(chosen)[:, None])[:, 0]
    off = torch.maximum((scores - right).abs(), whole.amax(-1) - right)
    if not off.max() <= 10 * SAME:
        first = int((~(off <= 10 * SAME)).nonzero()[0])
        raise Failed(
            f"the server's cache is wrong for a text {name}: token {first + 1} of the answer is "
            f"off by {off[first].item():.2g} in log-probability"
        )


def served(model: Any, prompts: list[list[int]], tokens: int) -> list[list[tuple[int, float]]]:
    """What the built-in server answers to prompts that come at once, and each token's score."""
    from trainer.serving.engine.engine import Engine, Limits
    from trainer.serving.engine.sequences import Event, SequenceRequest

    answers: list[list[tuple[int, float]]] = [[] for _ in prompts]
    finished: queue.Queue[str] = queue.Queue()

    def take(events: list[Event]) -> None:
        for event in events:
            if event.token is not None:
                answers[event.index].append((event.token.token_id, float(event.token.logprob or 0)))
            if event.finish:
                finished.put(event.finish)

    limits = Limits(max_total_tokens=4 * CONTEXT)
    engine = Engine(
        model, made_up_tokenizer(model.config.get_text_config().vocab_size), limits, frozenset()
    )
    requests = [
        SequenceRequest(prompt_ids=tuple(prompt), max_new_tokens=tokens, top_logprobs=0)
        for prompt in prompts
    ]
    engine.start()
    engine.submit(requests, take)
    try:
        ends = [finished.get(timeout=SERVED_SECONDS) for _ in prompts]
    except queue.Empty:
        raise Failed(f"the server does not answer within {SERVED_SECONDS:.0f} s") from None
    if "error" in ends:
        raise Failed(f"the server can't answer ({engine.failure})")
    engine.close()
    return answers
