"""What OpenAI's two completion routes share: their common fields, events, errors, counts."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Protocol

from annotated_types import Ge, Le
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from trainer.serving.bodies import ApiError
from trainer.serving.sampling import Sampling
from trainer.serving.service import Service

MAX_STOPS = 4
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
class StreamOptions:
    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None  # there is no padding to leave out


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


def check_name(service: Service, name: str) -> None:
    """Refuse a request for another model than the one that is served."""
    if name != service.name:
        raise ApiError(404, f"model is not here (got {name!r}). Here is {service.name!r}.", "model")


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


def token_text(service: Service, token_id: int) -> str:
    """One token as text; a part of a character as the vocabulary writes it."""
    text = service.tokenizer.decode([token_id], clean_up_tokenization_spaces=False)
    if "�" in text:
        return str(service.tokenizer.convert_ids_to_tokens(token_id))
    return str(text)


def stop_of(stop: str | list[str] | None) -> tuple[str, ...]:
    """Stop sequences: one, or up to four."""
    stops = [stop] if isinstance(stop, str) else stop or []
    if len(stops) > MAX_STOPS:
        raise ApiError(400, f"stop has too many (got {len(stops)}). At most {MAX_STOPS}.", "stop")
    return tuple(s for s in stops if s)


def sampling_of(service: Service, body: SamplingFields, index: int) -> Sampling:
    """The settings of choice `index`; each choice has a seed of its own."""
    temperature = 1.0 if body.temperature is None else body.temperature
    top_p = 1.0 if body.top_p is None else body.top_p
    return Sampling(
        do_sample=temperature > 0 and top_p > 0,
        temperature=temperature,
        top_k=body.top_k or 0,
        top_p=top_p,
        repetition_penalty=body.repetition_penalty or 1.0,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=_logit_bias(service, body.logit_bias or {}),
        seed=None if body.seed is None else body.seed + index,
    )


def _logit_bias(service: Service, given: Mapping[str, float]) -> dict[int, float]:
    wrong = [key for key in given if not key.isdecimal() or int(key) >= service.vocabulary]
    if wrong:
        raise ApiError(
            400,
            f"logit_bias holds what is no token id (got {wrong[0]!r}). "
            f"Ids go from 0 to {service.vocabulary - 1}.",
            "logit_bias",
        )
    return {int(key): value for key, value in given.items()}
