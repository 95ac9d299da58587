"""The V2 protocol's tensors: one of texts comes in, one of texts goes out."""

import json
import uuid

from kserve import InferOutput, InferRequest, InferResponse

from trainer.serving.bodies import ApiError, crowd_in

PATH = "/v2/"
MAX_ENTRIES = 64  # of any list or object of a request, apart from a tensor's data


def problem_of(path: str, body: bytes) -> str:
    """What a V2 request has too much of; empty: nothing.

    kserve's own check remembers each wrong entry with what is in it: a million take gigabytes.
    """
    if not path.startswith(PATH):
        return ""
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        return ""  # kserve refuses it
    if crowd := crowd_in(given, MAX_ENTRIES, dict, list, apart=("data",)):
        return f"{crowd[0]} has too many entries (got {crowd[1]}). At most {MAX_ENTRIES}."
    return ""


def texts_of(request: InferRequest) -> list[str]:
    """The request's texts, whatever their shape.

    Raises:
        ApiError: It has other tensors, or what is in them is no text.
    """
    inputs = request.inputs
    if len(inputs) != 1 or inputs[0].datatype != "BYTES":
        got = ", ".join(f"{i.name}: {i.datatype}" for i in inputs) or "none"
        raise ApiError(400, f"inputs is not one tensor of datatype BYTES (got {got}).", "inputs")
    try:
        values = inputs[0].as_numpy().flat
        texts = [value.decode() if isinstance(value, bytes) else value for value in values]
    except ValueError as error:  # not of its shape, or not UTF-8
        raise ApiError(400, f"inputs holds no texts of its shape ({error}).", "inputs") from error
    for text in texts:
        if not isinstance(text, str):
            raise ApiError(400, f"inputs holds what is no text (got {text!r}).", "inputs")
    return texts


def response_of(request: InferRequest, model: str, texts: list[str]) -> InferResponse:
    """The answers, with the request's id; kserve wants one also where the client gave none."""
    output = InferOutput(
        name="generated_text", shape=[len(texts)], datatype="BYTES", data=list(texts)
    )
    response_id = request.id or str(uuid.uuid4())
    return InferResponse(response_id=response_id, model_name=model, infer_outputs=[output])
