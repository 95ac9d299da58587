"""The serve step: load a model, prove that it answers, and take requests until told to stop."""

import asyncio
import dataclasses
import json
import os
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import psutil

from trainer.contract.errors import RequestError, StepError
from trainer.contract.files import write_atomically
from trainer.contract.step_configs import ServeConfig
from trainer.contract.volume import path_on_volume, refuse_links_out
from trainer.serving.access import read_api_key
from trainer.serving.adapter import base_of
from trainer.serving.adapter_watch import ServedAdapters
from trainer.serving.deploy import lease
from trainer.serving.deploy.choose_engine import engine_here
from trainer.serving.engine.adapters import AdapterRows
from trainer.serving.engine.engine import Engine, Limits
from trainer.serving.engine.sequences import SequenceRequest
from trainer.serving.engine.vllm import VllmEngine
from trainer.serving.how_to_serve import how_to_serve
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
from trainer.serving.read_requests import read_request
from trainer.serving.readers import Readers
from trainer.serving.server import listen, serve
from trainer.serving.service import ServedModel, Service, longest_token_bytes
from trainer.steps import StepResult


def run(config: ServeConfig) -> StepResult:
    """Serve until SIGTERM or SIGINT; write the ready file once the model has answered."""
    begin = psutil.Process().create_time()
    print(f"imports: {time.time() - begin:.2f} s", flush=True)
    if config.record_file:
        lease.hold(Path(config.record_file))
    api_key = read_api_key(config.api_key_variable)
    folder = path_on_volume(config.volume, "model", config.model)
    if not folder.is_dir():
        raise RequestError(f"model is not a folder on the volume (got {config.model!r}).")
    refuse_links_out(config.volume, "model", folder)
    model_digests = timed("digests", lambda: digests(folder))
    _refuse_another_model(config, model_digests["model"])
    if config.engine == "auto":
        config = dataclasses.replace(config, engine=engine_here("auto"))
        print(f"serving.engine=auto takes {config.engine} here", flush=True)
    engine, about = _engine(config, folder)
    model = ServedModel(
        name=config.name,
        tokenizer=engine.tokenizer,
        vocabulary=about.vocabulary,
        max_total_tokens=engine.limits.max_total_tokens,
        longest_token_bytes=longest_token_bytes(engine.tokenizer),
        has_others=bool(config.adapters),
    )
    service = Service(
        model=model,
        engine=engine,
        readers=Readers(model, read_request),  # it forks: no thread of the engine may run yet
        dtype=about.dtype,
        digests=model_digests,
        adapter=config.name if config.adapters else "",
    )
    adapters = _with_adapters(config, folder, service) if config.adapters else None
    timed("engine", engine.start)
    if adapters and config.adapters_file:
        adapters.follow(Path(config.adapters_file), service)
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

    serve(service, listening, ready, api_key=api_key, origins=config.cors_origins)
    service.readers.close()
    engine.close()
    if failure := engine.failure or service.readers.failure:
        raise StepError(f"the model stopped answering: {failure}")
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
        vllm = VllmEngine(
            folder,
            tokenizer,
            limits,
            about.end_ids,
            trust_remote_code=config.trust_remote_code,
            dtype=about.dtype,
            engine_args=config.engine_args,
        )
        return vllm, about
    how = timed("comparison with whole passes", lambda: how_to_serve(model))
    print(f"how it is served: {how.sentence}", flush=True)
    if how.way == "vllm_only":
        raise RequestError(f"model {config.model!r} can't be served here: {how.sentence}.")
    limits = dataclasses.replace(limits, max_cached_tokens=max_cached_tokens(model, how))
    return Engine(model, tokenizer, limits, about.end_ids, how), about


def _with_adapters(config: ServeConfig, folder: Path, service: Service) -> ServedAdapters:
    """Put the served model's adapter and the others beside their base; the engine isn't started."""
    engine = service.engine
    assert isinstance(engine, Engine), "refused by ServeConfig"
    engine.adapters = AdapterRows(engine.model)
    base = base_of(folder)
    engine.adapters.put(config.name, engine.adapters.load(folder / "adapter", base))
    adapters = ServedAdapters(config.volume, base, engine.adapters)
    for name, model in config.adapters.items():
        timed(f"adapter {name}", partial(adapters.load, name, model, service))
    return adapters


def _refuse_another_model(config: ServeConfig, digest: str) -> None:
    """A restarted server must not continue with what was put in its model's place meanwhile."""
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
