"""What OpenAI's two completion routes share: their common fields, events, errors, counts."""

import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Protocol

from annotated_types import Ge, Le
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from trainer.serving.api.bodies import ApiError, shown
from trainer.serving.engine.sampling import Sampling
from trainer.serving.service import ServedModel

MAX_STOPS = 4
GREEDY_BELOW = 1e-5  # temperatures that divide logits out of range; vLLM draws the same line
LEAST_LOGPROB = -9999.0
STRICT = ConfigDict(extra="forbid", strict=True)
Penalty = Annotated[float, Ge(-2), Le(2)]
Temperature = Annotated[float, Ge(0), Le(2)]
Share = Annotated[float, Ge(0), Le(1)]
LogitBias = dict[str, Annotated[float, Ge(-100), Le(100)]]
Seed = Annotated[int, Ge(-(2**63)), Le(2**63 - 1)]
# The first thing wrong with a list will do: it may have a million.
Texts = Annotated[list[str], Field(fail_fast=True)]
Ids = Annotated[list[int], Field(fail_fast=True)]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class TextFormat:
    """`response_format` where it asks for what every answer is."""

    type: Literal["text"]


# Fields of OpenAI's that clients send by default, or to tell their requests apart. They change
# nothing in an answer, so any value of their type is accepted.
Label = Annotated[str, Field(max_length=512)]
Labels = dict[str, Any]


@dataclass(frozen=True, kw_only=True, config=STRICT)
class StreamOptions:
    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # padding of chunks, which there is none of


class SamplingFields(Protocol):
    """The fields that say how tokens are chosen; null stands for the default."""

    @property
    def temperature(self) -> float | None: ...
    @property
    def top_p(self) -> float | None: ...
    @property
    def top_k(self) -> int | None: ...
    @property
    def repetition_penalty(self) -> float | None: ...
    @property
    def presence_penalty(self) -> float | None: ...
    @property
    def frequency_penalty(self) -> float | None: ...
    @property
    def logit_bias(self) -> Mapping[str, float] | None: ...
    @property
    def seed(self) -> int | None: ...


def check_name(served: str, name: str) -> None:
    """Refuse a request for another model than the one that is served."""
    if name != served:
        message = f"model is not here (got {shown(name)}). Here is {served!r}."
        raise ApiError(404, message, "model")


def sse(message: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(message, ensure_ascii=False)}\n\n"


def error_body(error: ApiError) -> dict[str, Any]:
    """An error as OpenAI's API describes it."""
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    if error.status == 429:
        kind = "rate_limit_error"
    return {"message": error.message, "type": kind, "param": error.param, "code": None}


def usage_of(prompt: int, generated: int) -> dict[str, int]:
    """Token counts, a prompt counted once however many answers it got."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
    }


def token_text(model: ServedModel, token_id: int) -> str:
    """One token as text; a part of a character as the vocabulary writes it."""
    text = model.tokenizer.decode([token_id], clean_up_tokenization_spaces=False)
    if "�" in text:
        return str(model.tokenizer.convert_ids_to_tokens(token_id))
    return str(text)


def stop_of(model: ServedModel, stop: str | list[str] | None) -> tuple[str, ...]:
    """Stop sequences: one, or up to four."""
    stops = [stop] if isinstance(stop, str) else stop or []
    if len(stops) > MAX_STOPS:
        raise ApiError(400, f"stop has too many (got {len(stops)}). At most {MAX_STOPS}.", "stop")
    for each in stops:  # each is looked for in the text at every token
        model.refuse_long(each, "stop")
    return tuple(s for s in stops if s)


def seed_of(seed: int | None, index: int) -> int | None:
    """The seed of choice `index`: another for each, also where the first is negative.

    Python's `random` takes -1 and 1 for the same seed, so none that it gets is negative.
    """
    return None if seed is None else (seed + index) % 2**63


def sampling_of(model: ServedModel, body: SamplingFields, index: int) -> Sampling:
    """The settings of choice `index`; each choice has a seed of its own."""
    temperature = 1.0 if body.temperature is None else body.temperature
    top_p = 1.0 if body.top_p is None else body.top_p
    return Sampling(
        do_sample=temperature >= GREEDY_BELOW and top_p > 0,
        temperature=temperature,
        top_k=body.top_k or 0,
        top_p=top_p,
        repetition_penalty=body.repetition_penalty or 1.0,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=_logit_bias(model, body.logit_bias or {}),
        seed=seed_of(body.seed, index),
    )


def _logit_bias(model: ServedModel, given: Mapping[str, float]) -> dict[int, float]:
    wrong = [key for key in given if not _is_id(key, model.vocabulary)]
    if wrong:
        raise ApiError(
            400,
            f"logit_bias holds what is no token id (got {shown(wrong[0])}). "
            f"Ids go from 0 to {model.vocabulary - 1}.",
            "logit_bias",
        )
    return {int(key): value for key, value in given.items()}


def _is_id(key: str, vocabulary: int) -> bool:
    # Python refuses to read thousands of digits, and no id has that many.
    return key.isascii() and key.isdecimal() and len(key) < 10 and int(key) < vocabulary


def score(value: float | None) -> float | None:
    """A log-probability as JSON can hold it, with OpenAI's least value for what can't come.

    Raises:
        ApiError: The model gives no number.
    """
    if value is not None and math.isnan(value):
        raise ApiError(500, "the model's scores are not numbers (NaN). It can't be used.")
    return None if value is None else max(value, LEAST_LOGPROB)
