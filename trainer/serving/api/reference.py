"""The two APIs that users of the upstream workflow have scripts for.

`POST /v1/models/{name}:predict` is KServe's V1 protocol with the parameters of transformers'
pipeline, and V2 `infer` has the same parameters; `POST /completion` has the twelve fields of the
upstream workflow's own inference service. Answers contain the prompt, as there.
"""

from dataclasses import replace
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, MaxLen
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from starlette.responses import Response

from trainer.contract.parameter_types import Seed
from trainer.serving.api.bodies import (
    ApiError,
    RepetitionPenalty,
    TokenCount,
    TokenCountOrZero,
    checked_body,
)
from trainer.serving.api.openai_format import GREEDY_BELOW, seed_of
from trainer.serving.engine.sampling import Sampling
from trainer.serving.engine.sequences import SequenceRequest
from trainer.serving.responses import json_response
from trainer.serving.service import MAX_SEQUENCES, Answer, ServedModel, Service

PREDICT_NEW_TOKENS = 20  # transformers' own default for `generate`
MAX_CANDIDATES = 64  # rows of one sequence under contrastive search

_STRICT = ConfigDict(extra="forbid", strict=True)
_TopP = Annotated[float, Gt(0), Le(1)]
_Temperature = Annotated[float, Gt(0), Le(100)]
_Sequences = Annotated[int, Ge(1), Le(MAX_SEQUENCES)]
# Each word is looked for at every token, while all others wait.
_Words = Annotated[list[str], MaxLen(1000), Field(fail_fast=True)]
_Alpha = Annotated[float, Ge(0), Le(1)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class CompletionBody:
    """What `/completion` takes; null stands for the default."""

    prompt: str
    max_new_tokens: TokenCount | None = 10
    temperature: _Temperature | None = None
    top_p: _TopP | None = None
    top_k: TokenCountOrZero | None = None
    typical_p: _TopP | None = None
    repetition_penalty: RepetitionPenalty | None = None
    do_sample: bool | None = None  # true, but for contrastive search (penalty_alpha)
    penalty_alpha: _Alpha | None = None
    num_return_sequences: _Sequences | None = 1
    stop_sequence: str | None = None
    bad_words: _Words | None = None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class PredictParameters:
    """`parameters` of `:predict`, in the words of transformers' `generate`.

    Lengths count the prompt too, `*_new_tokens` do not. Text is sampled where
    `do_sample` says so, or where it is not given but a setting of sampling is.
    """

    min_length: TokenCountOrZero | None = None
    max_length: TokenCount | None = None
    min_new_tokens: TokenCountOrZero | None = None
    max_new_tokens: TokenCount | None = None
    temperature: _Temperature | None = None
    top_p: _TopP | None = None
    top_k: TokenCountOrZero | None = None
    typical_p: _TopP | None = None
    repetition_penalty: RepetitionPenalty | None = None
    do_sample: bool | None = None
    penalty_alpha: _Alpha | None = None
    num_return_sequences: _Sequences | None = 1
    stop_sequence: str | None = None
    bad_words: _Words | None = None
    seed: Seed | None = None
    return_full_text: bool | None = True


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class PredictBody:
    """What `:predict` takes."""

    instances: Annotated[list[str], Field(fail_fast=True)]
    parameters: dict[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class TextRequest:
    """Texts to be continued, checked and encoded: what each of them, in order, is asked with.

    `texts` are put before the answers: empty where the answers alone are wanted.
    """

    texts: list[str]
    each: int  # answers to each text
    sequences: list[SequenceRequest]
    in_predictions: bool  # as V1 has it; a plain list otherwise

    async def respond(self, service: Service) -> Response:
        """The answers, in the form of the route."""
        answers = await self.generated(service)
        if self.in_predictions:
            return await json_response(lambda: {"predictions": answers})
        return await json_response(lambda: answers[0])

    async def generated(self, service: Service) -> list[list[dict[str, str]]]:
        """For each text its answers, as transformers' pipeline gives them."""
        answers = await service.answers(self.sequences)
        return [
            _generated(text, answers[index * self.each : (index + 1) * self.each])
            for index, text in enumerate(self.texts)
        ]


def reference_completion(model: ServedModel, body: CompletionBody) -> TextRequest:
    """What `POST /completion` asks for."""
    prompt_ids = model.encode(body.prompt, "prompt")
    wanted = 10 if body.max_new_tokens is None else body.max_new_tokens
    sequence = SequenceRequest(
        prompt_ids=prompt_ids,
        max_new_tokens=model.room_for(prompt_ids, wanted, "max_new_tokens"),
        sampling=_sampling(model, body, samples=True, bad_words=_bad_words(model, body)),
        stop=_stop(model, body.stop_sequence),
        include_stop=True,
    )
    each = body.num_return_sequences or 1
    return TextRequest(
        texts=[body.prompt], each=each, sequences=[sequence] * each, in_predictions=False
    )


def predicted(model: ServedModel, instances: list[str], parameters: dict[str, Any]) -> TextRequest:
    """What `:predict` asks for, and V2's `infer`.

    Raises:
        ApiError: A parameter is wrong, or so many answers are not given at once.
    """
    checked = checked_body(PredictParameters, parameters)
    if not instances:
        raise ApiError(400, "instances is empty. Give at least one text.", "instances")
    each = checked.num_return_sequences or 1
    if len(instances) * each > MAX_SEQUENCES:
        raise ApiError(
            400,
            f"instances asks for too many answers (got {len(instances) * each}). "
            f"One request may have {MAX_SEQUENCES}. Ask in several requests.",
            "instances",
        )
    words = _bad_words(model, checked)
    sequences = [
        sequence
        for index, text in enumerate(instances)
        for sequence in _sequences(model, text, f"instances[{index}]", checked, words)
    ]
    full = checked.return_full_text is not False
    texts = instances if full else [""] * len(instances)
    return TextRequest(texts=texts, each=each, sequences=sequences, in_predictions=True)


def _sequences(
    model: ServedModel,
    text: str,
    param: str,
    checked: PredictParameters,
    bad_words: tuple[tuple[int, ...], ...],
) -> list[SequenceRequest]:
    prompt_ids = model.encode(text, param)
    least, most = _new_tokens(model, prompt_ids, checked)
    sampling = _sampling(model, checked, samples=_is_sampling(checked), bad_words=bad_words)
    return [
        SequenceRequest(
            prompt_ids=prompt_ids,
            max_new_tokens=most,
            min_new_tokens=least,
            sampling=replace(sampling, seed=seed_of(checked.seed, index)),
            stop=_stop(model, checked.stop_sequence),
            include_stop=True,
        )
        for index in range(checked.num_return_sequences or 1)
    ]


def _new_tokens(
    model: ServedModel, prompt_ids: tuple[int, ...], checked: PredictParameters
) -> tuple[int, int]:
    """Least and most tokens of an answer; lengths of transformers count the prompt."""
    prompt = len(prompt_ids)
    if checked.max_length is not None and checked.max_length <= prompt:
        raise ApiError(
            400,
            f"max_length leaves no room for an answer (got {checked.max_length}). "
            f"It counts the prompt, which has {prompt} tokens. "
            "Give more, or max_new_tokens, which counts the answer alone.",
            "max_length",
        )
    name, most = "max_new_tokens", checked.max_new_tokens
    if most is None and checked.max_length is not None:
        name, most = "max_length", checked.max_length - prompt
    if most is None:
        most = min(PREDICT_NEW_TOKENS, model.max_total_tokens - prompt)
    least = max(checked.min_new_tokens or 0, (checked.min_length or 0) - prompt)
    if least > most:
        named = "min_length" if checked.min_length else "min_new_tokens"
        raise ApiError(
            400,
            f"{named} is more than the longest answer asked for (got {least} new tokens at "
            f"least, {most} at most). Give a larger max_length or max_new_tokens.",
            named,
        )
    return least, model.room_for(prompt_ids, most, name)


def _is_sampling(checked: PredictParameters) -> bool:
    """Whether a setting is given that means nothing without sampling."""
    given = (checked.temperature, checked.top_k, checked.top_p, checked.typical_p)
    return any(value is not None for value in given)


def _sampling(
    model: ServedModel,
    body: CompletionBody | PredictParameters,
    *,
    samples: bool,
    bad_words: tuple[tuple[int, ...], ...],
) -> Sampling:
    """The settings as transformers means them; `samples` where `do_sample` is not given."""
    top_k, alpha = _or(body.top_k, 50), body.penalty_alpha or 0.0  # 50 is transformers' default
    if alpha and body.do_sample:
        raise ApiError(
            400,
            "penalty_alpha is contrastive search, which does not sample. Leave out do_sample.",
            "penalty_alpha",
        )
    if alpha and not 1 < top_k <= MAX_CANDIDATES:
        raise ApiError(
            400,
            f"top_k is out of range for penalty_alpha (got {top_k}). "
            f"It is how many tokens are tried: 2 to {MAX_CANDIDATES}.",
            "top_k",
        )
    temperature = _or(body.temperature, 1.0)
    return Sampling(
        do_sample=not alpha and _or(body.do_sample, samples) and temperature >= GREEDY_BELOW,
        temperature=temperature,
        top_k=top_k,
        top_p=_or(body.top_p, 1.0),
        typical_p=_or(body.typical_p, 1.0),
        repetition_penalty=_or(body.repetition_penalty, 1.0),
        bad_words=bad_words,
        penalty_alpha=alpha,
    )


def _bad_words(
    model: ServedModel, body: CompletionBody | PredictParameters
) -> tuple[tuple[int, ...], ...]:
    """Token ids never to complete: each word as it begins a text and after a space."""
    words = body.bad_words or []
    if "" in words:
        raise ApiError(400, "bad_words holds an empty word. Leave it out.", "bad_words")
    model.refuse_long("".join(words), "bad_words")
    forms = {form for word in words for form in (word, " " + word.lstrip())}
    encoded = (model.tokenizer(f, add_special_tokens=False)["input_ids"] for f in sorted(forms))
    return tuple(tuple(ids) for ids in encoded if ids)


def _stop(model: ServedModel, stop_sequence: str | None) -> tuple[str, ...]:
    if not stop_sequence:
        return ()
    model.refuse_long(stop_sequence, "stop_sequence")
    return (stop_sequence,)


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _generated(prompt: str, answers: list[Answer]) -> list[dict[str, str]]:
    return [{"generated_text": prompt + answer.text} for answer in answers]
