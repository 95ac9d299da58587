"""OpenAI's completions, with the field names and types of its API description.

Source: the OpenAPI document of the OpenAI API, `CreateCompletionRequest` and
`CreateCompletionResponse`. Fields that would change an answer and can't are refused.
"""

from typing import Annotated, Any

from annotated_types import Ge, Le
from pydantic import Field
from pydantic.dataclasses import dataclass

from trainer.serving.api.bodies import ApiError, RepetitionPenalty, TokenCountOrZero
from trainer.serving.api.openai_format import (
    STRICT,
    Ids,
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

DEFAULT_MAX_TOKENS = 16
MAX_LOGPROBS = 20


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CompletionsBody:
    """`CreateCompletionRequest`, and of transformers' settings those it lacks."""

    model: str
    # None: a document's beginning.
    prompt: str | Texts | Ids | Annotated[list[Ids], Field(fail_fast=True)] | None = None
    best_of: Annotated[int, Ge(0), Le(20)] | None = None
    echo: bool | None = False
    frequency_penalty: Penalty | None = 0.0
    logit_bias: LogitBias | None = None
    logprobs: Annotated[int, Ge(0), Le(MAX_LOGPROBS)] | None = None
    max_tokens: TokenCountOrZero | None = DEFAULT_MAX_TOKENS
    n: Annotated[int, Ge(1), Le(MAX_SEQUENCES)] | None = 1
    presence_penalty: Penalty | None = 0.0
    seed: Seed | None = None
    stop: str | Texts | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    suffix: None = None
    temperature: Temperature | None = 1.0
    top_p: Share | None = 1.0
    user: Label | None = None
    store: bool | None = None
    metadata: Labels | None = None
    response_format: TextFormat | None = None
    # Not OpenAI's, as other servers of open models have them.
    top_k: TokenCountOrZero | None = 0
    repetition_penalty: RepetitionPenalty | None = 1.0
    min_tokens: TokenCountOrZero | None = 0
    return_token_ids: bool | None = False


class Completion(OpenAiRequest[CompletionsBody]):
    """One request to `/v1/completions`."""

    chunk_kind = "text_completion"

    def __init__(self, model: ServedModel, body: CompletionsBody) -> None:
        super().__init__(model, body, "cmpl")
        self.n = body.n or 1
        self._offsets: dict[int, int] = {}  # characters streamed of each choice's tokens
        self.prompts = self._prompts()
        self.requests = [
            self._sequence(ids, index * self._each + choice)
            for index, (_, ids) in enumerate(self.prompts)
            for choice in range(self._each)
        ]

    @property
    def _each(self) -> int:
        """Sequences made for each prompt."""
        best_of = self.body.best_of or self.n
        if best_of < self.n:
            raise ApiError(400, f"best_of is less than n (got {best_of}).", "best_of")
        if best_of > self.n and self.body.stream:
            raise ApiError(400, "best_of can't be streamed. Leave out either.", "best_of")
        return best_of

    def _prompts(self) -> list[tuple[str, tuple[int, ...]]]:
        """Text and token ids of each prompt."""
        prompt = "" if self.body.prompt is None else self.body.prompt
        if isinstance(prompt, str):
            prompt = [prompt]
        elif prompt and isinstance(prompt[0], int):
            prompt = [prompt]  # type: ignore[list-item]
        if not prompt:
            raise ApiError(400, "prompt is empty. Give at least one.", "prompt")
        if (asked := len(prompt) * self._each) > MAX_SEQUENCES:
            raise ApiError(
                400,
                f"n asks for too many answers (got {asked} with all prompts). "
                f"One request may have {MAX_SEQUENCES}.",
                "n",
            )
        pairs = []
        for one in prompt:
            if isinstance(one, str):
                pairs.append((one, self.model.encode(one, "prompt")))
            else:
                ids = self.model.checked_ids(list(one), "prompt")  # type: ignore[arg-type]
                pairs.append((self._text(ids), ids))
        return pairs

    def _text(self, ids: tuple[int, ...]) -> str:
        text = self.model.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def _sequence(self, prompt_ids: tuple[int, ...], index: int) -> SequenceRequest:
        body = self.body
        wanted = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
        if wanted == 0 and not body.echo:
            raise ApiError(400, "max_tokens is 0, which needs echo. Ask for more.", "max_tokens")
        least = body.min_tokens or 0
        if least > wanted:
            raise ApiError(
                400,
                f"min_tokens is more than the longest answer asked for (got {least}, "
                f"{wanted} at most). Give a larger max_tokens.",
                "min_tokens",
            )
        if body.max_tokens is None:
            wanted = min(wanted, self.model.max_total_tokens - len(prompt_ids))
        logprobs = body.logprobs
        if self._each > self.n and logprobs is None:
            logprobs = 0  # best_of chooses by them
        return SequenceRequest(
            prompt_ids=prompt_ids,
            max_new_tokens=self.model.room_for(prompt_ids, wanted, "max_tokens"),
            min_new_tokens=least,
            sampling=sampling_of(self.model, body, index),
            stop=stop_of(self.model, body.stop),
            top_logprobs=logprobs,
            prompt_logprobs=bool(body.echo) and body.logprobs is not None,
        )

    def whole(self, answers: list[Answer]) -> dict[str, Any]:
        choices = []
        for index, (text, ids) in enumerate(self.prompts):
            of_prompt = answers[index * self._each : (index + 1) * self._each]
            if self._each > self.n:
                of_prompt = sorted(of_prompt, key=_mean_logprob, reverse=True)[: self.n]
            choices += [self._choice(text, ids, answer) for answer in of_prompt]
        for index, choice in enumerate(choices):
            choice["index"] = index
        return {**self.head(self.chunk_kind), "choices": choices, "usage": self.usage(answers)}

    def _choice(self, prompt: str, ids: tuple[int, ...], answer: Answer) -> dict[str, Any]:
        echo = bool(self.body.echo)
        scored = [*answer.prompt, *answer.tokens]
        token_ids = {"token_ids": answer.ids, "prompt_token_ids": ids}
        return {
            "text": (prompt if echo else "") + answer.text,
            "index": 0,
            "logprobs": self._logprobs(scored, 0) if self.body.logprobs is not None else None,
            "finish_reason": answer.finish,
            **(token_ids if self.body.return_token_ids else {}),
        }

    def _logprobs(self, scored: list[TokenLogprob], offset: int) -> dict[str, Any]:
        """Parallel lists, one entry a token; offsets are characters into the text."""
        tokens = [token_text(self.model, t.token_id) for t in scored]
        offsets = []
        for token in tokens:
            offsets.append(offset)
            offset += len(token)
        tops: list[dict[str, float | None] | None] = [
            None
            if t.logprob is None
            else {token_text(self.model, i): score(value) for i, value in t.top}
            for t in scored
        ]
        return {
            "tokens": tokens,
            "token_logprobs": [score(t.logprob) for t in scored],
            "top_logprobs": tops if self.body.logprobs else None,
            "text_offset": offsets,
        }

    def opening(self) -> list[dict[str, Any]]:
        if not self.body.echo or self.body.logprobs is not None:
            return []  # with log-probabilities the prompt comes when it is read
        return [
            self._chunk(index, self.prompts[index // self._each][0], None, None)
            for index in range(len(self.requests))
        ]

    def chunk_of(self, event: Event) -> dict[str, Any]:
        text, logprobs, index = event.text, None, event.index
        scored = [*event.prompt, *([event.token] if event.token else [])]
        if event.prompt:
            text = self.prompts[index // self._each][0] + text
        if scored and self.body.logprobs is not None:
            offset = self._offsets.get(index, 0)
            logprobs = self._logprobs(scored, offset)
            self._offsets[index] = offset + sum(len(token) for token in logprobs["tokens"])
        return self._chunk(index, text, logprobs, event.finish)

    def _chunk(self, index: int, text: str, logprobs: Any, finish: str | None) -> dict[str, Any]:
        choice = {"text": text, "index": index, "logprobs": logprobs, "finish_reason": finish}
        return {**self.head(self.chunk_kind), "choices": [choice]}

    def usage(self, answers: list[Answer]) -> dict[str, int]:
        generated = sum(len(answer.ids) for answer in answers)
        return usage_of(sum(len(ids) for _, ids in self.prompts), generated)


def _mean_logprob(answer: Answer) -> float:
    values = [t.logprob for t in answer.tokens if t.logprob is not None]
    return sum(values) / len(values) if values else float("-inf")
