"""The serve step: load a model, prove that it answers, and take requests until told to stop."""

import asyncio
import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path

from trainer.config import ServeConfig, path_on_volume
from trainer.errors import RequestError, StepError
from trainer.outcome import write_atomically
from trainer.serving.engine import Engine, Limits
from trainer.serving.loading import (
    digests,
    dtype_name,
    end_ids,
    load,
    max_cached_tokens,
    max_total_tokens,
    timed,
)
from trainer.serving.sequences import SequenceRequest
from trainer.serving.server import listen, serve
from trainer.serving.service import Service
from trainer.steps import StepResult


def run(config: ServeConfig) -> StepResult:
    """Serve until SIGTERM or SIGINT; write the ready file once the model has answered."""
    begin = time.perf_counter()
    folder = path_on_volume(config.volume, "model", config.model)
    model, tokenizer = load(config, folder)
    limits = Limits(
        max_total_tokens=max_total_tokens(config, model),
        max_batch=config.max_batch,
        max_queue=config.max_queue,
        max_cached_tokens=max_cached_tokens(model),
        request_seconds=config.request_seconds,
    )
    engine = Engine(model, tokenizer, limits, end_ids(model, tokenizer))
    service = Service(
        name=config.name,
        engine=engine,
        tokenizer=tokenizer,
        dtype=dtype_name(model),
        digests=timed("digests", lambda: digests(folder)),
    )
    engine.start()
    timed("first token", lambda: asyncio.run(_answer_once(service)))
    try:
        listening = listen(config.host, config.port)
    except OSError as error:
        raise RequestError(
            f"port can't be listened on at {config.host} (got {config.port}: {error.strerror}). "
            "Take another, or 0 for a free one."
        ) from error
    url = _url(config.host, listening.getsockname()[1])

    def ready() -> None:
        print(f"ready at {url} after {time.perf_counter() - begin:.2f} s", flush=True)
        if config.ready_file:
            write_atomically(Path(config.ready_file), json.dumps(_ready_record(service, url)))

    serve(service, listening, ready)
    engine.close()
    if engine.failure:
        raise StepError(f"the model stopped answering: {engine.failure}")
    return StepResult(message=f"stopped serving {config.model}")


async def _answer_once(service: Service) -> None:
    first = service.tokenizer.bos_token_id or 0
    request = SequenceRequest(prompt_ids=(first,), max_new_tokens=1)
    (answer,) = await service.answers([request])
    assert len(answer.ids) == 1


def _url(host: str, port: int) -> str:
    # Everyone who may connect from this machine can do so over loopback.
    reachable = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)
    return f"http://{reachable}:{port}"


def _ready_record(service: Service, url: str) -> dict[str, object]:
    return {
        "url": url,
        "port": int(url.rsplit(":", 1)[1]),
        "pid": os.getpid(),
        "name": service.name,
        "dtype": service.dtype,
        "model_digest": service.digests["model"],
        "tokenizer_digest": service.digests["tokenizer"],
        "ready": datetime.now(UTC).isoformat(timespec="seconds"),
    }
