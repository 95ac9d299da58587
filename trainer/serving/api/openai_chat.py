"""OpenAI's chat completions, for models whose tokenizer has a chat template.

Source: the OpenAPI document of the OpenAI API, `CreateChatCompletionRequest` and
`CreateChatCompletionResponse`. Fields that would change an answer and can't are refused.
"""

from typing import Annotated, Any, Literal

from annotated_types import Ge, Le, MinLen
from pydantic import Field
from pydantic.dataclasses import dataclass

from trainer.serving.api.bodies import (
    ApiError,
    RepetitionPenalty,
    TokenCount,
    TokenCountOrZero,
    shown,
)
from trainer.serving.api.openai_format import (
    STRICT,
    Label,
    Labels,
    LogitBias,
    Penalty,
    Seed,
    Share,
    StreamOptions,
    Temperature,
    TextFormat,
    Texts,
    sampling_of,
    score,
    stop_of,
    token_text,
    usage_of,
)
from trainer.serving.api.openai_request import OpenAiRequest
from trainer.serving.engine.sequences import Event, SequenceRequest, TokenLogprob
from trainer.serving.service import MAX_SEQUENCES, Answer, ServedModel

TEMPLATE_GROWTH = 4  # of a text in the template, which adds roles and instructions


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ContentPart:
    text: str
    type: Literal["text"] = "text"


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Message:
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[ContentPart], Field(fail_fast=True)]
    name: str | None = None
    refusal: None = None  # our answers have it, and clients send them back as they came

    def for_template(self) -> dict[str, str]:
        parts = self.content
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        named = {} if self.name is None else {"name": self.name}
        return {"role": self.role, "content": text, **named}


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ChatBody:
    """`CreateChatCompletionRequest`, and of transformers' settings those it lacks."""

    model: str
    messages: Annotated[list[Message], MinLen(1), Field(fail_fast=True)]
    frequency_penalty: Penalty | None = 0.0
    logit_bias: LogitBias | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Ge(0), Le(20)] | None = None
    max_tokens: TokenCount | None = None
    max_completion_tokens: TokenCount | None = None
    n: Annotated[int, Ge(1), Le(MAX_SEQUENCES)] | None = 1
    presence_penalty: Penalty | None = 0.0
    seed: Seed | None = None
    stop: str | Texts | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    temperature: Temperature | None = 1.0
    top_p: Share | None = 1.0
    user: Label | None = None
    store: bool | None = None
    metadata: Labels | None = None
    response_format: TextFormat | None = None
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    safety_identifier: Label | None = None
    prompt_cache_key: Label | None = None
    service_tier: Literal["auto", "default"] | None = None
    # Not OpenAI's, as other servers of open models have them.
    top_k: TokenCountOrZero | None = 0
    repetition_penalty: RepetitionPenalty | None = 1.0


class Chat(OpenAiRequest[ChatBody]):
    """One request to `/v1/chat/completions`."""

    chunk_kind = "chat.completion.chunk"

    def __init__(self, model: ServedModel, body: ChatBody) -> None:
        super().__init__(model, body, "chatcmpl")
        self.prompt_ids = self._prompt()
        self.requests = [self._sequence(index) for index in range(body.n or 1)]

    def _prompt(self) -> tuple[int, ...]:
        """The conversation's token ids, up to where the assistant's answer begins."""
        tokenizer = self.model.tokenizer
        if not tokenizer.chat_template:
            raise ApiError(
                400,
                f"model {self.model.name!r} has no chat template. Ask it at /v1/completions.",
                "model",
            )
        messages = [message.for_template() for message in self.body.messages]
        for message in messages:
            self.model.refuse_long(message["content"], "messages")
        self.model.refuse_long("".join(m["content"] for m in messages), "messages")
        text = self._rendered(messages)
        # The template has written the special tokens.
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return self.model.checked_ids(ids, "messages")

    def _rendered(self, messages: list[dict[str, str]]) -> str:
        """The conversation as the model's template writes it.

        A template is a program that comes with the model: it may raise anything.
        """
        try:
            text = self.model.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except MemoryError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {shown(str(error))}"
            raise ApiError(
                400, f"messages do not fit the model's chat template ({reason}).", "messages"
            ) from error
        assert isinstance(text, str)
        if len(text) > TEMPLATE_GROWTH * self.model.max_text_bytes:
            raise ApiError(
                400,
                f"messages are too long in the model's chat template (got {len(text)} characters "
                f"from it). The context has {self.model.max_total_tokens} tokens. Shorten them.",
                "messages",
            )
        return text

    def _sequence(self, index: int) -> SequenceRequest:
        body, model = self.body, self.model
        if body.top_logprobs is not None and not body.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs. Set it to true.", "top_logprobs")
        name = "max_completion_tokens" if body.max_completion_tokens else "max_tokens"
        room = model.max_total_tokens - len(self.prompt_ids)
        wanted = body.max_completion_tokens or body.max_tokens or max(1, room)
        return SequenceRequest(
            prompt_ids=self.prompt_ids,
            max_new_tokens=model.room_for(self.prompt_ids, wanted, name),
            sampling=sampling_of(model, body, index),
            stop=stop_of(self.model, body.stop),
            top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        )

    def whole(self, answers: list[Answer]) -> dict[str, Any]:
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": answer.text, "refusal": None},
                "logprobs": self._logprobs(answer.tokens),
                "finish_reason": answer.finish,
            }
            for index, answer in enumerate(answers)
        ]
        usage = self.usage(answers)
        return {**self.head("chat.completion"), "choices": choices, "usage": usage}

    def opening(self) -> list[dict[str, Any]]:
        start = {"role": "assistant", "content": ""}
        return [self._chunk(index, start, [], None) for index in range(len(self.requests))]

    def chunk_of(self, event: Event) -> dict[str, Any]:
        delta = {"content": event.text} if event.text else {}
        scored = [event.token] if event.token else []
        return self._chunk(event.index, delta, scored, event.finish)

    def _chunk(
        self, index: int, delta: dict[str, str], scored: list[TokenLogprob], finish: str | None
    ) -> dict[str, Any]:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": self._logprobs(scored) if scored else None,
            "finish_reason": finish,
        }
        return {**self.head(self.chunk_kind), "choices": [choice]}

    def _logprobs(self, scored: list[TokenLogprob]) -> dict[str, Any] | None:
        if not self.body.logprobs:
            return None
        content = [
            {
                **self._scored(token.token_id, token.logprob),
                "top_logprobs": [self._scored(*pair) for pair in token.top],
            }
            for token in scored
        ]
        return {"content": content, "refusal": None}

    def _scored(self, token_id: int, logprob: float | None) -> dict[str, Any]:
        text = token_text(self.model, token_id)
        return {"token": text, "logprob": score(logprob), "bytes": list(text.encode())}

    def usage(self, answers: list[Answer]) -> dict[str, int]:
        return usage_of(len(self.prompt_ids), sum(len(answer.ids) for answer in answers))
