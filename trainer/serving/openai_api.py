"""OpenAI's routes: models, completions, chat completions."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from trainer.serving.bodies import checked_body, read_json
from trainer.serving.openai_chat import Chat, ChatBody
from trainer.serving.openai_completions import Completion, CompletionsBody
from trainer.serving.openai_format import check_name
from trainer.serving.service import Service


def openai_router(service: Service) -> APIRouter:
    """`/v1/completions` and `/v1/models`, which also answer as kserve's V1 protocol does."""
    router = APIRouter(prefix="/v1")

    @router.get("/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(service)], "models": [service.name]}

    @router.get("/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        check_name(service, name)
        return {**_model(service), "name": name, "ready": service.engine.alive}

    @router.post("/completions")
    async def completions(request: Request) -> Response:
        body = checked_body(CompletionsBody, read_json(await request.body()))
        return await Completion(service, body).respond()

    @router.post("/chat/completions")
    async def chat(request: Request) -> Response:
        body = checked_body(ChatBody, read_json(await request.body()))
        return await Chat(service, body).respond()

    return router


def _model(service: Service) -> dict[str, Any]:
    return {
        "id": service.name,
        "object": "model",
        "created": service.created,
        "owned_by": "finetune",
        "max_model_len": service.max_total_tokens,
        "dtype": service.dtype,
        "chat": bool(service.tokenizer.chat_template),
        "digests": dict(service.digests),
    }
