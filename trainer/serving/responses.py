"""Answers that are made and encoded beside the event loop: one may have a million entries."""

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from starlette.responses import Response

Made = TypeVar("Made")
# Without the C encoder, which holds Python's lock until all is encoded: seconds for a long answer.
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


async def beside_the_loop(make: Callable[[], Made]) -> Made:
    """Call `make` in a thread, while the event loop answers others."""
    return await asyncio.to_thread(make)


async def json_response(make: Callable[[], Any]) -> Response:
    """The JSON of what `make` returns; both are done in a thread."""
    body = await beside_the_loop(lambda: "".join(_ENCODER.iterencode(make())).encode())
    return Response(body, media_type="application/json")


def small_json(
    content: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """The JSON of something small, at once."""
    body = _ENCODER.encode(content).encode()
    return Response(body, status, headers, media_type="application/json")
