"""The serve step: load a model, prove that it answers, and take requests until told to stop."""

import asyncio
import dataclasses
import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path

import psutil

from trainer.config import ServeConfig
from trainer.durable import write_atomically
from trainer.errors import RequestError, StepError
from trainer.serving import lease
from trainer.serving.engine import Engine, Limits
from trainer.serving.loading import (
    About,
    about_folder,
    about_model,
    digests,
    load,
    max_cached_tokens,
    max_total_tokens,
    timed,
)
from trainer.serving.sequences import SequenceRequest
from trainer.serving.server import listen, serve
from trainer.serving.service import Service
from trainer.serving.vllm_engine import VllmEngine
from trainer.steps import StepResult
from trainer.volume_paths import path_on_volume


def run(config: ServeConfig) -> StepResult:
    """Serve until SIGTERM or SIGINT; write the ready file once the model has answered."""
    begin = psutil.Process().create_time()
    print(f"imports: {time.time() - begin:.2f} s", flush=True)
    if config.record_file:
        lease.hold(Path(config.record_file))
    folder = path_on_volume(config.volume, "model", config.model)
    if not folder.is_dir():
        raise RequestError(f"model is not a folder on the volume (got {config.model!r}).")
    model_digests = timed("digests", lambda: digests(folder))
    _refuse_another_model(config, model_digests["model"])
    engine, about = _engine(config, folder)
    service = Service(
        name=config.name,
        engine=engine,
        tokenizer=engine.tokenizer,
        dtype=about.dtype,
        vocabulary=about.vocabulary,
        digests=model_digests,
    )
    engine.start()
    timed("first token", lambda: asyncio.run(_answer_once(service)))
    port = int(os.environ.get(config.port_variable) or config.port)
    try:
        listening = listen(config.host, port)
    except OSError as error:
        raise RequestError(
            f"port can't be listened on at {config.host} (got {port}: {error.strerror}). "
            "Take another, or 0 for a free one."
        ) from error
    url = _url(config.host, listening.getsockname()[1])

    def ready() -> None:
        print(f"ready at {url} after {time.time() - begin:.2f} s", flush=True)
        if config.ready_file:
            write_atomically(Path(config.ready_file), json.dumps(_ready_record(service, url)))

    serve(service, listening, ready)
    engine.close()
    if engine.failure:
        raise StepError(f"the model stopped answering: {engine.failure}")
    return StepResult(message=f"stopped serving {config.model}")


def _engine(config: ServeConfig, folder: Path) -> tuple[Engine | VllmEngine, About]:
    """The engine with the model in it, and what its routes need to know of the model."""
    if config.engine == "vllm":
        tokenizer, about = about_folder(config, folder)
    else:
        model, tokenizer = load(config, folder)
        about = about_model(model, tokenizer)
    limits = Limits(
        max_total_tokens=max_total_tokens(config, about),
        max_batch=config.max_batch,
        max_queue=config.max_queue,
        request_seconds=config.request_seconds,
    )
    if config.engine == "vllm":
        trust = config.trust_remote_code
        return VllmEngine(folder, tokenizer, limits, about.end_ids, trust_remote_code=trust), about
    limits = dataclasses.replace(limits, max_cached_tokens=max_cached_tokens(model))
    return Engine(model, tokenizer, limits, about.end_ids), about


def _refuse_another_model(config: ServeConfig, digest: str) -> None:
    """A restarted server must not go on with what was put in its model's place meanwhile."""
    if config.model_digest not in ("", digest):
        raise RequestError(
            f"model is not the one that was deployed (got digest {digest} in {config.model!r}). "
            f"That was {config.model_digest}. Deploy the run again to serve what is there now."
        )


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
