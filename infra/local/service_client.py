"""Ask a service over HTTP, as OpenAI's API has it: whole, piece by piece, or as a chat."""

import contextlib
import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from shlex import quote
from typing import Any, Protocol

from trainer.contract.json_text import parse_json

MOST_OF_A_BODY = 300  # characters of what is no answer, in a message


class Endpoint(Protocol):
    """Where a model answers."""

    @property
    def url(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def api_key_variable(self) -> str: ...


@dataclass(frozen=True)
class Address:
    """An endpoint that is known by its address alone."""

    url: str
    name: str = "final"
    api_key_variable: str = ""  # environment variable with its API key; empty: it needs none


class NoAnswerError(Exception):
    """A service refused a request, broke off or did not answer."""


def ask(
    service: Endpoint, prompt: str, *, timeout_seconds: float = 600.0, **parameters: Any
) -> str:
    """The service's answer to `prompt`, the prompt not included.

    Raises:
        NoAnswerError: It refused or did not answer.
    """
    body = {"model": service.name, "prompt": prompt, **parameters}
    with _asked(service, "/v1/completions", body, timeout_seconds) as response:
        return parse_json(response.read())["choices"][0]["text"]


def stream(
    service: Endpoint, prompt: str, *, timeout_seconds: float = 600.0, **parameters: Any
) -> Iterator[str]:
    """The service's answer piece by piece, as it is made; closing this stops it.

    Raises:
        NoAnswerError: It refused, broke off or did not answer.
    """
    body = {"model": service.name, "prompt": prompt, "stream": True, **parameters}
    yield from _choices(
        service, "/v1/completions", body, timeout_seconds, lambda choice: choice["text"]
    )


def stream_chat(
    service: Endpoint,
    messages: list[dict[str, str]],
    *,
    timeout_seconds: float = 600.0,
    **parameters: Any,
) -> Iterator[str]:
    """The assistant's answer to a conversation, as `stream` gives it.

    Raises:
        NoAnswerError: It refused, broke off or did not answer.
    """
    body = {"model": service.name, "messages": messages, "stream": True, **parameters}
    yield from _choices(
        service,
        "/v1/chat/completions",
        body,
        timeout_seconds,
        lambda choice: choice["delta"].get("content", ""),
    )


def can_chat(service: Endpoint) -> bool:
    """Whether its tokenizer has a chat template.

    Raises:
        NoAnswerError: It did not answer.
    """
    with _asked(service, f"/v1/models/{service.name}", None, timeout_seconds=60.0) as response:
        return parse_json(response.read())["chat"]


def curl_command(service: Endpoint, prompt: str, max_new_tokens: int = 40) -> str:
    """The shell command that asks the same; it names the variable of an API key, not the key."""
    body = json.dumps({"parameters": {"max_new_tokens": max_new_tokens}, "instances": [prompt]})
    command = (
        f"curl {service.url}/v1/models/{service.name}:predict "
        f"-H 'Content-Type: application/json' -d {quote(body)}"
    )
    if not service.api_key_variable:
        return command
    # Through a pipe: everyone on a machine can read the arguments of a process, also curl's.
    header = f"""printf 'Authorization: Bearer %s' "${service.api_key_variable}" """
    return f"{header}| {command} -H @-"


def _choices(
    service: Endpoint,
    path: str,
    body: dict[str, Any],
    timeout_seconds: float,
    text_of: Callable[[dict[str, Any]], str],
) -> Iterator[str]:
    """The texts of the choices of a stream of server-sent events."""
    with _asked(service, path, body, timeout_seconds) as response:
        for line in response:
            if line.strip() == b"data: [DONE]":
                return
            if not line.startswith(b"data: "):
                continue
            message = parse_json(line[len(b"data: ") :])
            if "error" in message:
                raise NoAnswerError(message["error"]["message"])
            yield from [text_of(choice) for choice in message["choices"]]
    raise NoAnswerError(f"{service.url}{path} broke off in the middle of its answer.")


@contextlib.contextmanager
def _asked(
    service: Endpoint, path: str, body: dict[str, Any] | None, timeout_seconds: float
) -> Iterator[Any]:
    """The response to a request, while it is read."""
    url, sent = f"{service.url}{path}", None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, sent, {"Content-Type": "application/json"})
    for name, value in _authorization(service.api_key_variable).items():
        request.add_unredirected_header(name, value)
    # The service is on this machine: no proxy of the environment comes between.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=timeout_seconds) as response:
            yield response
    except urllib.error.HTTPError as error:
        raise NoAnswerError(f"{url} answered {error.code}: {_reason(error.read())}") from error
    except (OSError, http.client.HTTPException) as error:  # it ended, or is about to start
        reason = getattr(error, "reason", error)
        raise NoAnswerError(f"{url} does not answer ({reason}).") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise NoAnswerError(
            f"{url} answered with something that no server of ours sends "
            f"({type(error).__name__}: {error}). Check the address, and proxies."
        ) from error


def _authorization(variable: str) -> dict[str, str]:
    """The header with the API key in that environment variable, where one is named."""
    if not variable:
        return {}
    key = os.environ.get(variable, "").strip()
    if not key:
        raise NoAnswerError(
            f"The service wants an API key, and the environment variable with it is not set "
            f"(got {variable!r}). Set it: export {variable}=..."
        )
    return {"Authorization": f"Bearer {key}"}


def _reason(body: bytes) -> str:
    """The sentence in an answer that is an error, of either form that servers of ours have."""
    text = body.decode(errors="replace")
    with contextlib.suppress(ValueError, KeyError, TypeError):
        error = parse_json(text)["error"]
        return error if isinstance(error, str) else str(error["message"])
    return " ".join(text.split())[:MOST_OF_A_BODY] or "an empty body"
