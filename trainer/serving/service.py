"""What the routes share: the served model with its limits, and answers awaited."""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from trainer.serving.api.bodies import ApiError, shown
from trainer.serving.engine.engine import Engine, QueueFullError
from trainer.serving.engine.sequences import Event, FinishReason, SequenceRequest, TokenLogprob
from trainer.serving.engine.vllm import VllmEngine
from trainer.serving.readers import Readers
from trainer.tokens.model_tokenizer import encode_prompt

MAX_SEQUENCES = 64  # answers to one request: prompts x answers to each
MIN_TEXT_BYTES = 4096
MIN_ENTRIES = 1024
MIN_BODY_BYTES = 2 * 2**20
MAX_BODY_BYTES = 16 * 2**20
ID_BYTES = 8  # of a token id in JSON, with its comma
ESCAPED = 3  # bytes of a character outside ASCII in JSON's escapes, for each of its UTF-8 bytes
ENGINE_LOOK_SECONDS = 1.0  # between two looks at an engine that tells nothing
GIVEN_UP_SECONDS = 5.0  # after a request's deadline: the engine has not even said that it is over
MODEL_FAILED = "the model failed on this request. The server's log says why."


@dataclass
class Answer:
    """One finished sequence."""

    text: str = ""
    tokens: list[TokenLogprob] = field(default_factory=list)
    prompt: tuple[TokenLogprob, ...] = ()
    ids: list[int] = field(default_factory=list)
    finish: FinishReason | None = None


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """What reading a request needs to know of the model: no weights, no engine."""

    name: str
    tokenizer: PreTrainedTokenizerBase
    vocabulary: int
    max_total_tokens: int  # of prompt and answer together
    longest_token_bytes: int
    has_others: bool = False  # served beside it under other names: the server checks the name

    @property
    def max_text_bytes(self) -> int:
        """UTF-8 bytes of the longest text that the context could hold."""
        return max(MIN_TEXT_BYTES, self.max_total_tokens * self.longest_token_bytes)

    @property
    def max_entries(self) -> int:
        """Entries of the longest list that a request has a use for: the ids of a prompt."""
        return max(MIN_ENTRIES, self.max_total_tokens)

    @property
    def max_body_bytes(self) -> int:
        """Bytes of the largest body that this context has a use for.

        That is one prompt for each answer, as token ids or as text in JSON's escapes.
        """
        prompt = self.max_total_tokens * max(ID_BYTES, ESCAPED * self.longest_token_bytes)
        return min(MAX_BODY_BYTES, max(MIN_BODY_BYTES, MAX_SEQUENCES * prompt))

    def encode(self, text: str, param: str) -> tuple[int, ...]:
        """Token ids of a prompt, with what its tokenizer puts before a text, as in training.

        Raises:
            ApiError: It is empty, or too long for the context.
        """
        self.refuse_long(text, param)
        return self.checked_ids(encode_prompt(self.tokenizer, text), param)

    def refuse_long(self, text: str, param: str) -> None:
        """Refuse a text that the context can't hold before it is tokenized, which may be slow."""
        if len(text) > self.max_text_bytes or len(text.encode()) > self.max_text_bytes:
            raise ApiError(400, self._too_long(f"{len(text)} characters", param), param)

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
                f"{param} holds a token id that the model does not have (got "
                f"{shown(wrong[0])}). Ids go from 0 to {self.vocabulary - 1}.",
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


def longest_token_bytes(tokenizer: PreTrainedTokenizerBase) -> int:
    """UTF-8 bytes of the longest token, as the vocabulary writes it: never less than its text."""
    return max(len(token.encode(errors="replace")) for token in tokenizer.get_vocab())


@dataclass(frozen=True, kw_only=True)
class Service:
    """A model, the processes that read requests for it, and the engine that answers them."""

    model: ServedModel
    engine: Engine | VllmEngine
    readers: Readers
    dtype: str
    digests: Mapping[str, str]  # of the model's and the tokenizer's files
    adapter: str = ""  # the engine's name of the adapter that answers; '': the model alone
    others: dict[str, Mapping[str, str]] = field(default_factory=dict)  # digests by name
    refused: dict[str, str] = field(default_factory=dict)  # why, by name: see adapter_watch.py
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.model.tokenizer

    @property
    def names(self) -> list[str]:
        return [self.name, *self.others]

    def all(self) -> list["Service"]:
        """Each model that is served now."""
        others = dict(self.others)  # another thread may change them
        return [self, *(self._other(name, digests) for name, digests in others.items())]

    def named(self, name: str, param: str | None = None) -> "Service":
        """The model of that name.

        Raises:
            ApiError: There is none.
        """
        if name == self.name:
            return self
        digests = self.others.get(name)
        if digests is None:
            here = ", ".join(repr(each) for each in self.names)
            message = self.refused.get(name) or f"Here is {here}."
            raise ApiError(404, f"model is not here (got {shown(name)}). {message}", param)
        return self._other(name, digests)

    def _other(self, name: str, digests: Mapping[str, str]) -> "Service":
        model = dataclasses.replace(self.model, name=name)
        return dataclasses.replace(self, model=model, digests=digests, adapter=name)

    async def events(self, requests: list[SequenceRequest]) -> AsyncIterator[list[Event]]:
        """What happens to `requests`, until all are finished; stops them when left early."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[list[Event]] = asyncio.Queue()

        def sink(events: list[Event]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and with it who asked
                loop.call_soon_threadsafe(queue.put_nowait, events)

        try:
            job = self.engine.submit(requests, sink, self.adapter)
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
                events = await self._next_events(queue, job.deadline + GIVEN_UP_SECONDS)
                left -= sum(event.finish is not None for event in events)
                for event in events:
                    self._raise_failure(event)
                yield events
        finally:
            job.cancel()

    async def _next_events(
        self, queue: "asyncio.Queue[list[Event]]", deadline: float
    ) -> list[Event]:
        """What the engine tells next; it may hang or end without telling anything."""
        while True:
            with contextlib.suppress(TimeoutError):
                return await asyncio.wait_for(queue.get(), ENGINE_LOOK_SECONDS)
            if not self.engine.alive:
                raise ApiError(500, MODEL_FAILED)
            if time.monotonic() > deadline:
                raise self._too_slow()

    def _raise_failure(self, event: Event) -> None:
        if event.finish == "timeout":
            raise self._too_slow()
        if event.finish == "error":
            raise ApiError(500, MODEL_FAILED)

    def _too_slow(self) -> ApiError:
        limit = self.engine.limits.request_seconds
        return ApiError(
            504,
            f"the answer took longer than {limit:g} seconds, which is the limit. "
            "Ask for fewer tokens.",
        )

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
