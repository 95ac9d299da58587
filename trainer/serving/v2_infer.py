"""`POST /v2/models/{name}/infer`: the V2 protocol's request and answer around `:predict`."""

import uuid
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Any

from annotated_types import Ge, Le, MaxLen
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass
from starlette.responses import Response

from trainer.serving.api.bodies import MAX_INTEGER, ApiError, checked_body
from trainer.serving.api.infer_tensors import HEADER, binary_answer, texts_of
from trainer.serving.api.reference import TextRequest, predicted
from trainer.serving.responses import json_response
from trainer.serving.service import ServedModel, Service

OUTPUT = "generated_text"
MAX_TENSORS = 64
# Clients send more than the protocol names, and nothing here depends on it.
_LENIENT = ConfigDict(extra="ignore", strict=True)
_Size = Annotated[int, Ge(0), Le(MAX_INTEGER)]


@dataclass(frozen=True, kw_only=True, config=_LENIENT)
class TensorParameters:
    """Parameters of a tensor: those of the binary extension."""

    binary_data_size: _Size | None = None
    binary_data: bool | None = None


@dataclass(frozen=True, kw_only=True, config=_LENIENT)
class InputTensor:
    name: str
    datatype: str
    shape: Annotated[list[_Size], MaxLen(MAX_TENSORS)]
    data: list[Any] | None = None
    parameters: TensorParameters | None = None


@dataclass(frozen=True, kw_only=True, config=_LENIENT)
class OutputTensor:
    name: str
    parameters: TensorParameters | None = None


@dataclass(frozen=True, kw_only=True, config=_LENIENT)
class InferBody:
    """What V2 `infer` takes; `parameters` are those of `:predict`."""

    inputs: Annotated[list[InputTensor], MaxLen(MAX_TENSORS)]
    id: Annotated[str, MaxLen(512)] | None = None
    parameters: dict[str, Any] | None = None
    outputs: Annotated[list[OutputTensor], MaxLen(MAX_TENSORS)] | None = None


@plain_dataclass(frozen=True, kw_only=True)
class InferRequest:
    """A V2 request that is checked and encoded."""

    id: str
    is_binary: bool  # whether the answer is to be
    texts: TextRequest

    async def respond(self, service: Service) -> Response:
        """The answers as one tensor of texts."""
        generated = await self.texts.generated(service)
        flat = [answer["generated_text"] for per_text in generated for answer in per_text]
        output: dict[str, Any] = {"name": OUTPUT, "shape": [len(flat)], "datatype": "BYTES"}
        head = {"model_name": service.name, "id": self.id, "outputs": [output]}
        if not self.is_binary:
            output["data"] = flat
            return await json_response(lambda: head)
        body, size = binary_answer(head, flat)
        return Response(body, 200, {HEADER: str(size)}, media_type="application/octet-stream")


def inferred(model: ServedModel, given: dict[str, Any], binary: bytes) -> InferRequest:
    """What a V2 request asks for.

    Args:
        model: What answers.
        given: The request's JSON.
        binary: What follows it.
    Raises:
        ApiError: It has other tensors than one of texts, or its parameters are wrong.
    """
    body = checked_body(InferBody, given)
    if len(body.inputs) != 1 or body.inputs[0].datatype != "BYTES":
        got = ", ".join(f"{i.name[:20]}: {i.datatype[:20]}" for i in body.inputs[:4]) or "none"
        raise ApiError(400, f"inputs is not one tensor of datatype BYTES (got {got}).", "inputs")
    (tensor,) = body.inputs
    size = tensor.parameters.binary_data_size if tensor.parameters else None
    texts = texts_of(tensor.shape, tensor.data, size, binary)
    parameters = dict(body.parameters or {})
    is_binary = parameters.pop("binary_data_output", False) is True
    for output in body.outputs or []:
        if output.name != OUTPUT:
            raise ApiError(
                400, f"outputs names what is not there (got {output.name[:40]!r}). {OUTPUT} is."
            )
        wanted = output.parameters.binary_data if output.parameters else None
        is_binary = is_binary if wanted is None else wanted
    return InferRequest(
        id=body.id or str(uuid.uuid4()),
        is_binary=is_binary,
        texts=predicted(model, texts, parameters),
    )
