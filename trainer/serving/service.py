"""What the routes share: the served model, requests checked against it, answers awaited."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from trainer.serving.bodies import ApiError
from trainer.serving.engine import Engine, QueueFullError
from trainer.serving.sequences import Event, FinishReason, SequenceRequest, TokenLogprob
from trainer.serving.vllm_engine import VllmEngine


@dataclass
class Answer:
    """One finished sequence."""

    text: str = ""
    tokens: list[TokenLogprob] = field(default_factory=list)
    prompt: tuple[TokenLogprob, ...] = ()
    ids: list[int] = field(default_factory=list)
    finish: FinishReason | None = None


@dataclass(frozen=True, kw_only=True)
class Service:
    """A model under its name, ready to be asked."""

    name: str
    engine: Engine | VllmEngine
    tokenizer: PreTrainedTokenizerBase
    dtype: str
    vocabulary: int
    digests: Mapping[str, str]  # of the model's and the tokenizer's files
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def max_total_tokens(self) -> int:
        return self.engine.limits.max_total_tokens

    def encode(self, text: str, param: str) -> tuple[int, ...]:
        """Token ids of a prompt, with the special tokens its tokenizer puts before a text.

        Raises:
            ApiError: There is nothing to go on from, or it is too long to be looked at.
        """
        # No token is longer than a few dozen characters in any vocabulary we know, so a text
        # far beyond that need not be tokenized, which takes seconds for tens of megabytes.
        if len(text) > 64 * self.max_total_tokens:
            raise ApiError(400, self._too_long(f"{len(text)} characters", param), param)
        ids = self.tokenizer(text)["input_ids"]
        return self.checked_ids(ids, param)

    def checked_ids(self, ids: list[int], param: str) -> tuple[int, ...]:
        """Token ids a client sent, or a prompt's, if the model can take them."""
        if not ids:
            end = self.tokenizer.bos_token_id
            end = self.tokenizer.eos_token_id if end is None else end
            if end is None:
                raise ApiError(400, f"{param} is empty. Give at least one token.", param)
            ids = [end]  # an empty prompt asks for the beginning of a document
        if len(ids) > self.max_total_tokens:
            raise ApiError(400, self._too_long(f"{len(ids)} tokens", param), param)
        wrong = [i for i in ids if not 0 <= i < self.vocabulary]
        if wrong:
            raise ApiError(
                400,
                f"{param} holds a token id that the model has not (got {wrong[0]}). "
                f"Ids go from 0 to {self.vocabulary - 1}.",
                param,
            )
        return tuple(ids)

    def _too_long(self, got: str, param: str) -> str:
        return (
            f"{param} is too long (got {got}). "
            f"Prompt and answer together may have {self.max_total_tokens} tokens. Shorten it."
        )

    def room_for(self, prompt_ids: tuple[int, ...], wanted: int, param: str) -> int:
        """`wanted` new tokens, if they fit behind the prompt."""
        room = self.max_total_tokens - len(prompt_ids)
        if wanted > room:
            raise ApiError(
                400,
                f"{param} asks for too much (got {wanted} new tokens after "
                f"{len(prompt_ids)} of the prompt). Prompt and answer together may have "
                f"{self.max_total_tokens} tokens. Ask for at most {room}.",
                param,
            )
        return wanted

    async def events(self, requests: list[SequenceRequest]) -> AsyncIterator[list[Event]]:
        """What happens to `requests`, until all are finished; stops them when left early."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[list[Event]] = asyncio.Queue()

        def sink(events: list[Event]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and with it who asked
                loop.call_soon_threadsafe(queue.put_nowait, events)

        try:
            job = self.engine.submit(requests, sink)
        except QueueFullError as error:
            raise ApiError(
                429,
                f"the server is busy ({error}). Ask again in a few seconds.",
                headers={"Retry-After": "2"},
            ) from error
        except ValueError as error:  # the engine has not what the request asks for
            raise ApiError(400, str(error)) from error
        left = len(requests)
        try:
            while left:
                events = await queue.get()
                left -= sum(event.finish is not None for event in events)
                for event in events:
                    self._raise_failure(event)
                yield events
        finally:
            job.cancel()

    def _raise_failure(self, event: Event) -> None:
        if event.finish == "timeout":
            limit = self.engine.limits.request_seconds
            raise ApiError(
                504,
                f"the answer took longer than {limit:g} seconds, which is the limit. "
                "Ask for fewer tokens.",
            )
        if event.finish == "error":
            raise ApiError(500, "the model failed on this request. The server's log says why.")

    async def answers(self, requests: list[SequenceRequest]) -> list[Answer]:
        """All answers, in the order of `requests`."""
        answers = [Answer() for _ in requests]
        async for events in self.events(requests):
            for event in events:
                absorb(answers[event.index], event)
        return answers


def absorb(answer: Answer, event: Event) -> None:
    """Add to an answer what an event tells of it."""
    answer.text += event.text
    answer.prompt = answer.prompt or event.prompt
    answer.finish = event.finish or answer.finish
    if event.token_id is not None:
        answer.ids.append(event.token_id)
    if event.token:
        answer.tokens.append(event.token)
