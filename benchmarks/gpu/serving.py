"""Tokens a second of answers, by the built-in engine and by vLLM; and how far bf16 strays."""

import importlib.util
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig

from benchmarks.gpu.scale import NotRun, Scale, device, make_model
from tests.serving import tiny_models
from trainer.serving.deploy.gate import TOLERANCES
from trainer.serving.engine.engine import Engine, Limits
from trainer.serving.engine.sequences import Event, SequenceRequest
from trainer.serving.engine.vllm import VllmEngine
from trainer.training.save.final import golden_answers

CLIENTS = (1, 8, 32)
NEW_TOKENS, PROMPT_TOKENS = 48, 32
END_IDS = frozenset({0})


def model_config(scale: Scale) -> LlamaConfig:
    """Of Llama's shape with 1.1 billion weights, and few tokens, all of which are text."""
    sizes = (64, 2, 4, 128) if scale.small else (2048, 22, 16, 5632)
    return LlamaConfig(
        vocab_size=len(tiny_models.tokenizer()),
        hidden_size=sizes[0],
        num_hidden_layers=sizes[1],
        num_attention_heads=sizes[2],
        intermediate_size=sizes[3],
        max_position_embeddings=256 if scale.small else 2048,
        bos_token_id=0,
        eos_token_id=0,
    )


def speed(scale: Scale, engine_name: str) -> dict[str, Any]:
    """Tokens a second with 1, 8 and 32 clients, who each wait for their answer."""
    if engine_name == "vllm" and importlib.util.find_spec("vllm") is None:
        raise NotRun("vLLM is not installed in this environment")
    limits = Limits(max_total_tokens=128, max_batch=32)
    with tempfile.TemporaryDirectory() as name, _engine(scale, engine_name, name, limits) as engine:
        _answer_all(engine, 2, 1)
        return {
            f"{clients}_clients": _tokens_per_second(engine, clients) for clients in _clients(scale)
        }


def _clients(scale: Scale) -> tuple[int, ...]:
    return (1, 2) if scale.small else CLIENTS


@contextmanager
def _engine(scale: Scale, name: str, folder: str, limits: Limits) -> Iterator[Any]:
    model, tokenizer = make_model(model_config(scale), scale.precision), tiny_models.tokenizer()
    engine: Any
    if name == "vllm":
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        del model
        torch.cuda.empty_cache()
        engine = VllmEngine(Path(folder), tokenizer, limits, END_IDS)
    else:
        engine = Engine(model, tokenizer, limits, END_IDS)
    engine.start()
    try:
        yield engine
    finally:
        engine.close()


def _tokens_per_second(engine: Any, clients: int) -> float:
    requests = max(8, 2 * clients)
    began = time.perf_counter()
    _answer_all(engine, requests, clients)
    return requests * NEW_TOKENS / (time.perf_counter() - began)


def _answer_all(engine: Any, requests: int, clients: int) -> None:
    left = threading.Semaphore(requests)

    def work(number: int) -> None:
        while left.acquire(blocking=False):
            answer(engine, _prompt(number), NEW_TOKENS)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _prompt(number: int) -> tuple[int, ...]:
    return tuple(1 + (7 * number + 3 * place) % 200 for place in range(PROMPT_TOKENS))


def answer(engine: Any, ids: tuple[int, ...], tokens: int, **asked: Any) -> list[Event]:
    """All events of one answer of exactly so many tokens."""
    events: list[Event] = []
    ended = threading.Event()

    def sink(new: list[Event]) -> None:
        events.extend(new)
        if any(event.finish for event in new):
            ended.set()

    request = SequenceRequest(prompt_ids=ids, max_new_tokens=tokens, min_new_tokens=tokens, **asked)
    engine.submit([request], sink)
    if not ended.wait(300):
        raise TimeoutError("an answer did not end in 300 s")
    if events[-1].finish == "error":
        raise RuntimeError(f"the engine failed: {engine.failure}")
    return events


def tolerance(scale: Scale) -> dict[str, Any]:
    """The largest difference of a log-probability between training's end and the server.

    The golden answers are made on the CPU from whole passes; the server answers on the GPU.
    """
    model = make_model(model_config(scale), "bf16")
    prompts = [list(_prompt(number)) for number in range(2 if scale.small else 4)]
    golden = golden_answers(model.cpu(), prompts, sorted(END_IDS))["prompts"]
    engine = Engine(
        model.to(device()), tiny_models.tokenizer(), Limits(max_total_tokens=128), END_IDS
    )
    engine.start()
    try:
        apart, same = _differences(engine, golden)
    finally:
        engine.close()
    return {
        "largest_difference": max(apart),
        "tolerance": TOLERANCES["bfloat16"],
        "share_of_tolerance": max(apart) / TOLERANCES["bfloat16"],
        "same_first_tokens": same,
        "prompts": len(prompts),
    }


def _differences(engine: Any, golden: list[dict[str, Any]]) -> tuple[list[float], int]:
    apart: list[float] = []
    same = 0
    for told in golden:
        events = answer(engine, tuple(told["ids"]), 1, prompt_logprobs=True, top_logprobs=0)
        scored = [t.logprob for event in events for t in event.prompt if t.logprob is not None]
        apart += [abs(a - b) for a, b in zip(scored, told["log_probs"], strict=True)]
        first = next(event for event in events if event.token_id is not None)
        same += first.token_id == told["next_id"]
    return apart, same
