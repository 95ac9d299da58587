"""Ask what a run made: its service, or any of its checkpoints, served for that moment."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from flows.cli.runs.overview import known_run
from infra.local import service as local_service
from infra.local import service_client
from infra.local.server_process import ServiceError
from infra.local.service_client import Address, Endpoint, NoAnswerError
from tasks.local_adapters import hosts_of
from trainer.contract.checkpoints import name_of, steps_there
from trainer.contract.errors import RequestError


@contextlib.contextmanager
def served(home: Path, pvc: str, run_name: str, step: int | None) -> Iterator[Endpoint]:
    """The run's service, or its checkpoint of that step as long as the block runs.

    Raises:
        RequestError: Nothing is served, there is no such checkpoint, or the block's request
            was refused.
    """
    try:
        if step is None and hosts_of(home / pvc, run_name):  # a series is no run
            yield _service(home / pvc, run_name)
            return
        folder = known_run(home, pvc, run_name)
        if step is None:
            yield _service(home / pvc, run_name)
            return
        there = steps_there(folder.checkpoints)
        if step not in there:
            shown = ", ".join(map(str, there)) or "none"
            raise RequestError(f"--step is no checkpoint of {run_name} (got {step}). {shown}.")
        model = f"{run_name}/checkpoints/{name_of(step)}"
        with local_service.serving_for_a_while(home / pvc, model) as endpoint:
            yield endpoint
    except (ServiceError, NoAnswerError) as error:
        raise RequestError(str(error)) from error


def _service(volume: Path, run_name: str) -> Endpoint:
    service = local_service.running(volume, run_name)
    if service is None:
        for host in hosts_of(volume, run_name).values():  # as an adapter beside another run
            return Address(host.url, run_name, host.api_key_variable)
        raise RequestError(
            f"{run_name} is not served. Serve it: "
            f"finetune run -p run_name={run_name} -p inference_only=true"
        )
    return service


class Conversation:
    """What was said so far, and how the model continues.

    A model with a chat template answers as an assistant; one without continues with the text,
    to which every line of yours is added.
    """

    def __init__(self, endpoint: Endpoint, max_tokens: int) -> None:
        self.is_chat = service_client.can_chat(endpoint)
        self._endpoint, self._max_tokens = endpoint, max_tokens
        self._messages: list[dict[str, str]] = []
        self._text = ""

    def say(self, line: str) -> Iterator[str]:
        """The answer to `line`, piece by piece; what came of it is remembered."""
        if self.is_chat:
            self._messages.append({"role": "user", "content": line})
            pieces = service_client.stream_chat(
                self._endpoint, self._messages, max_tokens=self._max_tokens
            )
        else:
            self._text += line
            pieces = service_client.stream(self._endpoint, self._text, max_tokens=self._max_tokens)
        answer = ""
        for piece in pieces:
            answer += piece
            yield piece
        self._text += answer
        self._messages.append({"role": "assistant", "content": answer})
