"""What a request to either of OpenAI's completion routes does: answer whole, or as a stream."""

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import Any, Generic, Protocol, TypeVar

from starlette.responses import Response, StreamingResponse

from trainer.serving.api.bodies import ApiError
from trainer.serving.api.openai_format import StreamOptions, check_name, error_body, sse
from trainer.serving.engine.sequences import Event, SequenceRequest
from trainer.serving.responses import beside_the_loop, json_response
from trainer.serving.service import Answer, ServedModel, Service, absorb


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
        model: What answers.
        body: The checked body.
        prefix: Of the answer's id.
    """

    chunk_kind: str
    requests: list[SequenceRequest]

    def __init__(self, model: ServedModel, body: Body, prefix: str) -> None:
        if not model.has_others:
            check_name(model.name, body.model)
        self.model = model
        self.body = body
        self._id = f"{prefix}-{uuid.uuid4().hex}"
        self._created = int(time.time())

    async def respond(self, service: Service) -> Response:
        """The answer, whole or as server-sent events."""
        self.model = service.model
        if not self.body.stream:
            answers = await service.answers(self.requests)
            return await json_response(lambda: self.whole(answers))
        events = service.events(self.requests)
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
            "model": self.model.name,
        }

    async def _message(self, event: Event, usage: dict[str, Any]) -> str:
        def message() -> str:
            return sse({**self.chunk_of(event), **usage})

        # The log-probabilities of a whole prompt come at once.
        return await beside_the_loop(message) if event.prompt else message()

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
                    yield await self._message(event, usage)
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
