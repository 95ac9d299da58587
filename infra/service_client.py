"""Ask a service over HTTP, as OpenAI's API has it: whole, piece by piece, or as a chat."""

import contextlib
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from shlex import quote
from typing import Any, Protocol


class Endpoint(Protocol):
    """Where a model answers."""

    @property
    def url(self) -> str: ...
    @property
    def name(self) -> str: ...


@dataclass(frozen=True)
class Address:
    """An endpoint that is known by its address alone."""

    url: str
    name: str = "final"


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
    with _asked(f"{service.url}/v1/completions", body, timeout_seconds) as response:
        return json.load(response)["choices"][0]["text"]


def stream(
    service: Endpoint, prompt: str, *, timeout_seconds: float = 600.0, **parameters: Any
) -> Iterator[str]:
    """The service's answer piece by piece, as it is made; closing this stops it.

    Raises:
        NoAnswerError: It refused, broke off or did not answer.
    """
    body = {"model": service.name, "prompt": prompt, "stream": True, **parameters}
    for choice in _choices(f"{service.url}/v1/completions", body, timeout_seconds):
        yield choice["text"]


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
    for choice in _choices(f"{service.url}/v1/chat/completions", body, timeout_seconds):
        yield choice["delta"].get("content", "")


def can_chat(service: Endpoint) -> bool:
    """Whether its tokenizer has a chat template.

    Raises:
        NoAnswerError: It did not answer.
    """
    with _asked(f"{service.url}/v1/models/{service.name}", None, timeout_seconds=60.0) as response:
        return json.load(response)["chat"]


def curl_command(service: Endpoint, prompt: str, max_new_tokens: int = 40) -> str:
    """The shell command that asks the same."""
    body = json.dumps({"parameters": {"max_new_tokens": max_new_tokens}, "instances": [prompt]})
    return (
        f"curl {service.url}/v1/models/{service.name}:predict "
        f"-H 'Content-Type: application/json' -d {quote(body)}"
    )


def _choices(url: str, body: dict[str, Any], timeout_seconds: float) -> Iterator[dict[str, Any]]:
    """The choices of a stream of server-sent events."""
    with _asked(url, body, timeout_seconds) as response:
        for line in response:
            if line.strip() == b"data: [DONE]":
                return
            if not line.startswith(b"data: "):
                continue
            message = json.loads(line[len(b"data: ") :])
            if "error" in message:
                raise NoAnswerError(message["error"]["message"])
            yield from message["choices"]
    raise NoAnswerError(f"{url} broke off in the middle of its answer.")


@contextlib.contextmanager
def _asked(url: str, body: dict[str, Any] | None, timeout_seconds: float) -> Iterator[Any]:
    """The response to a request, while it is read."""
    sent = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, sent, {"Content-Type": "application/json"})
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


def _reason(body: bytes) -> str:
    """The sentence in an answer that is an error, of either form that servers of ours have."""
    text = body.decode(errors="replace")
    with contextlib.suppress(ValueError, KeyError, TypeError):
        error = json.loads(text)["error"]
        return error if isinstance(error, str) else error["message"]
    return text
