"""The server's routes: V1, V2, OpenAI's, the upstream workflow's, health and metrics.

Each route of a model hands the body to a reader (read_requests.py) and lets what comes back answer.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from prometheus_client import REGISTRY, exposition
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from trainer.serving.api.bodies import ApiError, shown
from trainer.serving.api.openai_format import check_name
from trainer.serving.api.openai_request import OpenAiRequest
from trainer.serving.engine.metrics import PREDICT_SECONDS, PREPROCESS_SECONDS
from trainer.serving.health import Health
from trainer.serving.page import root
from trainer.serving.responses import small_json
from trainer.serving.service import Service
from trainer.serving.v2_infer import OUTPUT

Endpoint = Callable[[Request], Awaitable[Response]]


def routes(service: Service, health: Health) -> list[Route]:
    """All routes; what is in none of them is answered with 404 or 405."""
    return [*_open_routes(health), *_openai_routes(service), *_kserve_routes(service, health)]


def _open_routes(health: Health) -> list[Route]:
    """The page to try the model, health and metrics."""

    async def live(request: Request) -> Response:
        return _state("live", health.is_live)

    async def ready(request: Request) -> Response:
        return _state("ready", await health.is_ready())

    async def metrics(request: Request) -> Response:
        encoder, content_type = exposition.choose_encoder(request.headers.get("accept", ""))
        return Response(encoder(REGISTRY), headers={"content-type": content_type})

    return [
        Route("/", root),
        Route("/metrics", metrics),
        Route("/v2/health/live", live),
        Route("/v2/health/ready", ready),
    ]


def _openai_routes(service: Service) -> list[Route]:
    """OpenAI's, of which `/v1/models` answers clients of KServe's V1 protocol, too."""

    async def models(request: Request) -> Response:
        served = service.all()
        data, names = [_model(each) for each in served], [each.name for each in served]
        refused = {"refused": dict(service.refused)} if service.refused else {}
        return small_json({"object": "list", "data": data, "models": names, **refused})

    async def model(request: Request) -> Response:
        name = request.path_params["name"]
        if not service.model.has_others:
            check_name(service.name, name)
        ready = service.engine.alive
        return small_json({**_model(service.named(name, "model")), "name": name, "ready": ready})

    return [
        Route("/v1/models", models),
        Route("/v1/models/{name}", model),
        Route("/v1/completions", _answering(service, "completions"), methods=["POST"]),
        Route("/v1/chat/completions", _answering(service, "chat"), methods=["POST"]),
        Route("/completion", _answering(service, "completion"), methods=["POST"]),
    ]


def _kserve_routes(service: Service, health: Health) -> list[Route]:
    """V1's `:predict`, and V2."""

    async def server(request: Request) -> Response:
        return small_json(
            {"name": "finetune", "version": "2", "extensions": ["binary_tensor_data"]}
        )

    async def models(request: Request) -> Response:
        return small_json({"models": service.names})

    async def model(request: Request) -> Response:
        name = _of_path(service, request).name
        inputs = [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
        outputs = [{"name": OUTPUT, "datatype": "BYTES", "shape": [-1]}]
        about = {"name": name, "platform": "", "inputs": inputs, "outputs": outputs}
        return small_json(about)

    async def ready(request: Request) -> Response:
        name = _of_path(service, request).name
        if not await health.is_ready():
            raise ApiError(503, f"model {name!r} is not ready.")
        return small_json({"name": name, "ready": True})

    return [
        Route("/v1/models/{name}:predict", _answering(service, "predict"), methods=["POST"]),
        Route("/v2", server),
        Route("/v2/models", models),
        Route("/v2/models/{name}", model),
        Route("/v2/models/{name}/ready", ready),
        Route("/v2/models/{name}/infer", _answering(service, "infer"), methods=["POST"]),
    ]


def _answering(service: Service, kind: str) -> Endpoint:
    """A route whose requests of that kind are read, then answered by the engine."""

    async def answer(request: Request) -> Response:
        named = _of_path(service, request)
        body = await request.body()
        with PREPROCESS_SECONDS.labels(named.name).time():
            asked = await service.readers.read(kind, body, dict(request.headers))
        if isinstance(asked, OpenAiRequest):
            named = service.named(asked.body.model, "model")
        with PREDICT_SECONDS.labels(named.name).time():
            response: Response = await asked.respond(named)
        return response

    return answer


def _of_path(service: Service, request: Request) -> Service:
    """The model that the path names; the first one where it names none."""
    name = request.path_params.get("name", service.name)
    if name != service.name and not service.model.has_others:
        message = f"model {shown(name)} is not here. Here is {service.name!r}."
        raise ApiError(404, message)
    return service.named(name)


def _state(name: str, is_so: bool) -> Response:
    if is_so:
        return small_json({name: True})
    return small_json({name: False, "error": f"the server is not {name}."}, 503)


def _model(service: Service) -> dict[str, Any]:
    return {
        "id": service.name,
        "object": "model",
        "created": service.created,
        "owned_by": "finetune",
        "max_model_len": service.model.max_total_tokens,
        "dtype": service.dtype,
        "chat": bool(service.tokenizer.chat_template),
        "digests": dict(service.digests),
    }
