"""What a request to either of OpenAI's completion routes does: answer whole, or as a stream."""

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import Any, Generic, Protocol, TypeVar

from fastapi.responses import JSONResponse, Response, StreamingResponse

from trainer.serving.bodies import ApiError
from trainer.serving.openai_format import StreamOptions, check_name, error_body, sse
from trainer.serving.sequences import Event, SequenceRequest
from trainer.serving.service import Answer, Service, absorb


class StreamedBody(Protocol):
    """The fields of a request's body that say who answers and how."""

    @property
    def model(self) -> str: ...
    @property
    def stream(self) -> bool | None: ...
    @property
    def stream_options(self) -> StreamOptions | None: ...


Body = TypeVar("Body", bound=StreamedBody)


class OpenAiRequest(ABC, Generic[Body]):
    """One request: `requests` is what the engine is asked, `chunk_kind` the streamed `object`.

    Args:
        service: Who answers.
        body: The checked body.
        prefix: Of the answer's id.
    """

    chunk_kind: str
    requests: list[SequenceRequest]

    def __init__(self, service: Service, body: Body, prefix: str) -> None:
        check_name(service, body.model)
        if body.stream_options is not None and not body.stream:
            raise ApiError(400, "stream_options needs stream. Set it to true.", "stream_options")
        self.service = service
        self.body = body
        self._id = f"{prefix}-{uuid.uuid4().hex}"
        self._created = int(time.time())

    async def respond(self) -> Response:
        """The answer, whole or as server-sent events."""
        if not self.body.stream:
            return JSONResponse(self.whole(await self.service.answers(self.requests)))
        events = self.service.events(self.requests)
        first = await anext(events)  # what refuses the request, refuses it with its status
        return StreamingResponse(
            self._messages(first, events),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache"},
        )

    @abstractmethod
    def whole(self, answers: list[Answer]) -> dict[str, Any]:
        """The body that answers all at once."""

    @abstractmethod
    def opening(self) -> list[dict[str, Any]]:
        """Chunks that come before the first token."""

    @abstractmethod
    def chunk_of(self, event: Event) -> dict[str, Any]:
        """The chunk that tells of one event."""

    @abstractmethod
    def usage(self, answers: list[Answer]) -> dict[str, int]:
        """Token counts."""

    def head(self, kind: str) -> dict[str, Any]:
        """What every body and chunk begins with."""
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self.service.name,
        }

    async def _messages(
        self, first: list[Event], events: AsyncIterator[list[Event]]
    ) -> AsyncIterator[str]:
        answers = [Answer() for _ in self.requests]
        options = self.body.stream_options
        with_usage = bool(options and options.include_usage)
        # Only the last chunk has counts, but all have the field.
        usage: dict[str, Any] = {"usage": None} if with_usage else {}
        for chunk in self.opening():
            yield sse({**chunk, **usage})
        try:
            async for batch in _after(first, events):
                for event in batch:
                    absorb(answers[event.index], event)
                    yield sse({**self.chunk_of(event), **usage})
        except ApiError as error:
            yield sse({"error": error_body(error)})
            return
        if with_usage:
            yield sse({**self.head(self.chunk_kind), "choices": [], "usage": self.usage(answers)})
        yield "data: [DONE]\n\n"


async def _after(
    first: list[Event], events: AsyncIterator[list[Event]]
) -> AsyncIterator[list[Event]]:
    yield first
    async for batch in events:
        yield batch
