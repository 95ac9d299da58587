"""Ask an engine in this process, one by one or many at a time."""

import contextlib
import queue
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.serving import tiny_models
from trainer.serving.engine.engine import Engine, Limits
from trainer.serving.engine.sequences import Event, FinishReason, SequenceRequest, TokenLogprob

END = frozenset([0])


@dataclass
class Told:
    """What the engine told of one sequence."""

    ids: list[int] = field(default_factory=list)
    text: str = ""
    tokens: list[TokenLogprob] = field(default_factory=list)
    prompt: tuple[TokenLogprob, ...] = ()
    finish: FinishReason | None = None


@contextlib.contextmanager
def running(model: Any, *, end_ids: frozenset[int] = END, **limits: Any) -> Iterator[Engine]:
    """An engine around `model`, closed at the end."""
    engine = Engine(
        model,
        tiny_models.tokenizer(),
        Limits(**{"max_total_tokens": 256, "max_batch": 5, **limits}),
        end_ids,
    )
    engine.start()
    try:
        yield engine
    finally:
        engine.close()


def ask(engine: Engine, requests: list[SequenceRequest]) -> list[Told]:
    """Submit each request as a job of its own, at once; wait for all."""
    events: queue.Queue[tuple[int, Event]] = queue.Queue()
    for index, request in enumerate(requests):

        def sink(told: list[Event], index: int = index) -> None:
            for event in told:
                events.put((index, event))

        engine.submit([request], sink)
    answers = [Told() for _ in requests]
    while any(answer.finish is None for answer in answers):
        index, event = events.get(timeout=240)
        answer = answers[index]
        answer.text += event.text
        answer.prompt = answer.prompt or event.prompt
        answer.finish = event.finish or answer.finish
        if event.token:
            answer.tokens.append(event.token)
            answer.ids.append(event.token.token_id)
    return answers
