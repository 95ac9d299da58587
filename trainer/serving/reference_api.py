"""The two APIs that users of the reference have scripts for.

`POST /v1/models/{name}:predict` is kserve's V1 protocol with transformers' pipeline
behind it, and V2 `infer` with the same parameters; `POST /completion` has the twelve
fields of the reference's own inference service. Answers contain the prompt, as there.
"""

from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, MaxLen
from fastapi import APIRouter, Request
from kserve import InferRequest, InferResponse, Model
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from trainer.parameter_types import Count, CountOrZero, Positive, Seed
from trainer.serving.bodies import ApiError, checked_body, read_json
from trainer.serving.infer_tensors import response_of, texts_of
from trainer.serving.sampling import Sampling
from trainer.serving.sequences import SequenceRequest
from trainer.serving.service import Answer, Service

PREDICT_NEW_TOKENS = 20  # transformers' own default for `generate`
MAX_CANDIDATES = 64  # rows of one sequence under contrastive search
MAX_SEQUENCES = 64  # answers to one request: instances x num_return_sequences

_STRICT = ConfigDict(extra="forbid", strict=True)
_TopP = Annotated[float, Gt(0), Le(1)]
_Sequences = Annotated[int, Ge(1), Le(MAX_SEQUENCES)]
# Each word is looked for at every token, while all others wait.
_Words = Annotated[list[str], MaxLen(1000), Field(fail_fast=True)]
_Alpha = Annotated[float, Ge(0), Le(1)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class CompletionBody:
    """What `/completion` takes; null stands for the default."""

    prompt: str
    max_new_tokens: Count | None = 10
    temperature: Positive | None = None
    top_p: _TopP | None = None
    top_k: CountOrZero | None = None
    typical_p: _TopP | None = None
    repetition_penalty: Positive | None = None
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

    min_length: CountOrZero | None = None
    max_length: Count | None = None
    min_new_tokens: CountOrZero | None = None
    max_new_tokens: Count | None = None
    temperature: Positive | None = None
    top_p: _TopP | None = None
    top_k: CountOrZero | None = None
    typical_p: _TopP | None = None
    repetition_penalty: Positive | None = None
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


def completion_router(service: Service) -> APIRouter:
    """`POST /completion`."""
    router = APIRouter()

    @router.post("/completion")
    async def completion(request: Request) -> list[dict[str, str]]:
        body = checked_body(CompletionBody, read_json(await request.body()))
        prompt_ids = service.encode(body.prompt, "prompt")
        wanted = 10 if body.max_new_tokens is None else body.max_new_tokens
        sequence = SequenceRequest(
            prompt_ids=prompt_ids,
            max_new_tokens=service.room_for(prompt_ids, wanted, "max_new_tokens"),
            sampling=_sampling(service, body, samples=True, seed=None),
            stop=_stop(body.stop_sequence),
            include_stop=True,
        )
        answers = await service.answers([sequence] * (body.num_return_sequences or 1))
        return _generated(body.prompt, answers)

    return router


class PredictModel(Model):
    """kserve's model: what its V1 and V2 routes call."""

    def __init__(self, service: Service) -> None:
        super().__init__(service.name)
        self.service = service
        self.ready = True

    def get_input_types(self) -> list[dict[str, Any]]:
        return [{"name": "text", "datatype": "BYTES", "shape": [-1]}]

    def get_output_types(self) -> list[dict[str, Any]]:
        return [{"name": "generated_text", "datatype": "BYTES", "shape": [-1]}]

    async def healthy(self) -> bool:
        return self.service.engine.alive

    async def preprocess(
        self, payload: Any, headers: dict[str, str] | None = None
    ) -> dict[str, Any] | InferRequest:
        # Without a JSON content type (plain `curl -d`), kserve hands the bytes over as they are.
        return read_json(payload) if isinstance(payload, bytes) else payload

    async def predict(
        self,
        payload: Any,
        headers: dict[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> dict[str, Any] | InferResponse:
        if isinstance(payload, InferRequest):
            return await self._infer(payload)
        body = checked_body(PredictBody, payload)
        return {"predictions": await self._predict(body.instances, body.parameters or {})}

    async def _infer(self, request: InferRequest) -> InferResponse:
        """Answer the V2 protocol."""
        answers = await self._predict(texts_of(request), dict(request.parameters or {}))
        flat = [answer["generated_text"] for per_text in answers for answer in per_text]
        return response_of(request, self.name, flat)

    async def _predict(
        self, instances: list[str], parameters: dict[str, Any]
    ) -> list[list[dict[str, str]]]:
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
        sequences = [
            sequence
            for index, text in enumerate(instances)
            for sequence in self._sequences(text, f"instances[{index}]", checked, each)
        ]
        answers = await self.service.answers(sequences)
        full = checked.return_full_text is not False
        return [
            _generated(text if full else "", answers[index * each : (index + 1) * each])
            for index, text in enumerate(instances)
        ]

    def _sequences(
        self, text: str, param: str, checked: PredictParameters, each: int
    ) -> list[SequenceRequest]:
        service = self.service
        prompt_ids = service.encode(text, param)
        least, most = _new_tokens(service, prompt_ids, checked)
        return [
            SequenceRequest(
                prompt_ids=prompt_ids,
                max_new_tokens=most,
                min_new_tokens=least,
                sampling=_sampling(
                    service,
                    checked,
                    samples=_is_sampling(checked),
                    seed=None if checked.seed is None else checked.seed + index,
                ),
                stop=_stop(checked.stop_sequence),
                include_stop=True,
            )
            for index in range(each)
        ]


def _new_tokens(
    service: Service, prompt_ids: tuple[int, ...], checked: PredictParameters
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
        most = min(PREDICT_NEW_TOKENS, service.max_total_tokens - prompt)
    least = max(checked.min_new_tokens or 0, (checked.min_length or 0) - prompt)
    if least > most:
        named = "min_length" if checked.min_length else "min_new_tokens"
        raise ApiError(
            400,
            f"{named} is more than the longest answer asked for (got {least} new tokens at "
            f"least, {most} at most). Give a larger max_length or max_new_tokens.",
            named,
        )
    return least, service.room_for(prompt_ids, most, name)


def _is_sampling(checked: PredictParameters) -> bool:
    """Whether a setting is given that means nothing without sampling."""
    given = (checked.temperature, checked.top_k, checked.top_p, checked.typical_p)
    return any(value is not None for value in given)


def _sampling(
    service: Service, body: CompletionBody | PredictParameters, *, samples: bool, seed: int | None
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
    return Sampling(
        do_sample=not alpha and _or(body.do_sample, samples),
        temperature=_or(body.temperature, 1.0),
        top_k=top_k,
        top_p=_or(body.top_p, 1.0),
        typical_p=_or(body.typical_p, 1.0),
        repetition_penalty=_or(body.repetition_penalty, 1.0),
        bad_words=_bad_words(service, body.bad_words or []),
        penalty_alpha=alpha,
        seed=seed,
    )


def _bad_words(service: Service, words: list[str]) -> tuple[tuple[int, ...], ...]:
    """Token ids never to complete: each word as it begins a text and after a space."""
    if "" in words:
        raise ApiError(400, "bad_words holds an empty word. Leave it out.", "bad_words")
    forms = {form for word in words for form in (word, " " + word.lstrip())}
    encoded = (service.tokenizer(f, add_special_tokens=False)["input_ids"] for f in sorted(forms))
    return tuple(tuple(ids) for ids in encoded if ids)


def _stop(stop_sequence: str | None) -> tuple[str, ...]:
    return (stop_sequence,) if stop_sequence else ()


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _generated(prompt: str, answers: list[Answer]) -> list[dict[str, str]]:
    return [{"generated_text": prompt + answer.text} for answer in answers]
