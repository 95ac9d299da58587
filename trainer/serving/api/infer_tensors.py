"""The V2 protocol's tensors of texts, as JSON or in its binary form.

Source: the Open Inference Protocol and its binary tensor data extension,
https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol/binary-tensor-data-extension
"""

import json
import math
import struct
from collections.abc import Mapping
from typing import Any

from trainer.serving.api.bodies import ApiError, shown

HEADER = "inference-header-content-length"  # bytes of JSON before the binary tensors
_LENGTH = struct.Struct("<I")  # before each text of a binary tensor


def split_body(body: bytes, headers: Mapping[str, str]) -> tuple[bytes, bytes]:
    """The body's JSON, and the binary tensors behind it.

    Raises:
        ApiError: The header does not say where the JSON ends.
    """
    given = headers.get(HEADER)
    if given is None:
        return body, b""
    if not (given.isascii() and given.isdecimal() and len(given) < 10 and int(given) <= len(body)):
        raise ApiError(
            400,
            f"header {HEADER} is not the size of the JSON (got {shown(given)}). "
            f"The body has {len(body)} bytes.",
        )
    return body[: int(given)], body[int(given) :]


def texts_of(
    shape: list[int], data: list[Any] | None, size: int | None, binary: bytes
) -> list[str]:
    """A tensor's texts, whatever their shape.

    Args:
        shape: Its shape.
        data: Its entries, nested or not; None: they are binary.
        size: Of its bytes, where they are binary.
        binary: Those.
    Raises:
        ApiError: It does not hold texts of that shape.
    """
    if (data is None) == (size is None):
        raise ApiError(
            400, "inputs needs either data or the parameter binary_data_size, not both.", "inputs"
        )
    texts = _flat(data) if data is not None else _binary_texts(binary, size)
    if math.prod(shape) != len(texts):
        raise ApiError(
            400,
            f"inputs holds no texts of its shape (got {len(texts)} for shape {shown(shape)}).",
            "inputs",
        )
    for text in texts:
        if not isinstance(text, str):
            raise ApiError(400, f"inputs holds what is no text (got {shown(text)}).", "inputs")
    return texts


def _flat(data: list[Any]) -> list[Any]:
    """The entries of nested lists, in their order."""
    flat: list[Any] = []
    pending = [iter(data)]
    while pending:
        for entry in pending[-1]:
            if isinstance(entry, list):
                pending.append(iter(entry))
                break
            flat.append(entry)
        else:
            pending.pop()
    return flat


def _binary_texts(binary: bytes, size: int | None) -> list[str]:
    if size != len(binary):
        raise ApiError(
            400,
            f"inputs has another binary_data_size than the body has (got {size}). "
            f"{len(binary)} bytes follow its JSON.",
            "inputs",
        )
    texts, place = [], 0
    while place < len(binary):
        begin = place + _LENGTH.size
        if begin > len(binary):
            raise _cut_off()
        place = begin + _LENGTH.unpack_from(binary, place)[0]
        if place > len(binary):
            raise _cut_off()
        try:
            texts.append(binary[begin:place].decode())
        except UnicodeDecodeError as error:
            raise ApiError(400, f"inputs holds no UTF-8 ({error}).", "inputs") from error
    return texts


def _cut_off() -> ApiError:
    return ApiError(400, "inputs ends in the middle of a text: its length is wrong.", "inputs")


def binary_answer(head: dict[str, Any], texts: list[str]) -> tuple[bytes, int]:
    """A body with one output whose texts are binary, and the size of its JSON."""
    encoded = [text.encode() for text in texts]
    data = b"".join(_LENGTH.pack(len(text)) + text for text in encoded)
    (output,) = head["outputs"]
    output = {**output, "parameters": {"binary_data_size": len(data)}}
    text = json.dumps({**head, "outputs": [output]}, ensure_ascii=False).encode()
    return text + data, len(text)
