"""What a reader makes of a request: by route, the object that then answers it."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from starlette.responses import Response

from trainer.serving.api.bodies import ApiError, checked_body, crowd_in, read_json
from trainer.serving.api.infer_tensors import split_body
from trainer.serving.api.openai_chat import Chat, ChatBody
from trainer.serving.api.openai_completions import Completion, CompletionsBody
from trainer.serving.api.reference import (
    CompletionBody,
    PredictBody,
    predicted,
    reference_completion,
)
from trainer.serving.service import ServedModel, Service
from trainer.serving.v2_infer import inferred


class ReadRequest(Protocol):
    """A request that is checked and encoded."""

    async def respond(self, service: Service) -> Response: ...


def read_request(
    model: ServedModel, kind: str, body: bytes, headers: Mapping[str, str]
) -> ReadRequest:
    """Parse, check and encode a request; runs in a reader.

    Args:
        model: What is served.
        kind: A key of `KINDS`.
        body: The request's body, of no more than `model.max_body_bytes`.
        headers: The request's, names in lower case.
    Raises:
        ApiError: The request is wrong.
    """
    return KINDS[kind](model, body, headers)


def _object(model: ServedModel, body: bytes) -> dict[str, Any]:
    """The body's JSON, with no list that is longer than the context has a use for."""
    given = read_json(body)
    if crowd := crowd_in(given, model.max_entries, list):
        name, count = crowd
        limit = f"A list may have {model.max_entries}. Send fewer."
        raise ApiError(400, f"{name} has too many entries (got {count}). {limit}", name)
    return given


def _completions(model: ServedModel, body: bytes, headers: Mapping[str, str]) -> ReadRequest:
    return Completion(model, checked_body(CompletionsBody, _object(model, body)))


def _chat(model: ServedModel, body: bytes, headers: Mapping[str, str]) -> ReadRequest:
    return Chat(model, checked_body(ChatBody, _object(model, body)))


def _completion(model: ServedModel, body: bytes, headers: Mapping[str, str]) -> ReadRequest:
    return reference_completion(model, checked_body(CompletionBody, _object(model, body)))


def _predict(model: ServedModel, body: bytes, headers: Mapping[str, str]) -> ReadRequest:
    checked = checked_body(PredictBody, _object(model, body))
    return predicted(model, checked.instances, checked.parameters or {})


def _infer(model: ServedModel, body: bytes, headers: Mapping[str, str]) -> ReadRequest:
    text, binary = split_body(body, headers)
    return inferred(model, _object(model, text), binary)


KINDS: dict[str, Callable[[ServedModel, bytes, Mapping[str, str]], ReadRequest]] = {
    "completions": _completions,
    "chat": _chat,
    "completion": _completion,
    "predict": _predict,
    "infer": _infer,
}
