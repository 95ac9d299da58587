"""Every error as JSON: OpenAI's form on its paths, `{"error": sentence}` elsewhere."""

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from trainer.serving.api.bodies import ApiError, shown
from trainer.serving.api.openai_format import error_body
from trainer.serving.readers import ReaderError
from trainer.serving.responses import small_json

OPENAI_PATHS = ("/v1/completions", "/v1/chat/", "/v1/models")


def error_response(path: str, error: ApiError) -> Response:
    """The answer to a request for `path` that is refused or failed."""
    openai = path.startswith(OPENAI_PATHS) and ":" not in path
    body = error_body(error) if openai else error.message
    return small_json({"error": body}, error.status, error.headers)


async def answer_error(request: Request, error: Exception) -> Response:
    """An exception handler for every exception that a route raises."""
    return error_response(request.url.path, _as_api_error(request, error))


def _as_api_error(request: Request, error: Exception) -> ApiError:
    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException):
        message = f"{request.method} {shown(request.url.path)}: {error.detail}."
        return ApiError(error.status_code, message, headers=error.headers)
    if isinstance(error, ReaderError):
        print(f"a reader failed\n{error}", flush=True)
    # uvicorn logs the stack trace of every other one, because Starlette raises it again.
    return ApiError(500, "the server failed. Its log says why.")
